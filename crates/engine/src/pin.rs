//! Images that a graph names by tag alone, pinned to what was found when the graph was made.
//!
//! Owns that a named context (`docker-image://…`), which stands in the graph by its tag as the reference has it, is the
//! image whose config the graph was made with, however its tag moves meanwhile. Must not look anything up. Start with
//! [`Resolved::pinned`].

use std::collections::HashMap;
use std::convert::Infallible;

use stave_frontend_dockerfile::{ResolvedSources, request::ImageOrigin};
use stave_llb::{Definition, SourceOp};
use stave_oci::Digest;

use crate::resolve::{Resolved, source_of};

impl Resolved {
    /// The same graph with every image of a named context pinned. One that was found differently for several platforms
    /// keeps its tag: what this machine has under it is found again.
    pub(crate) fn pinned(&self, definition: Definition) -> Definition {
        let pins = pins(&self.sources);
        if pins.is_empty() {
            return definition;
        }
        let pinned = definition.with_sources::<Infallible>(&mut |source| {
            let pin = pins.get(&source.raw).and_then(Option::as_ref);
            Ok(pin.map(|pinned| SourceOp::new(pinned.clone(), source.attrs.clone())))
        });
        pinned.unwrap_or_else(|never| match never {})
    }
}

/// By a source's identifier without a digest, that with it; `None` where there are several.
fn pins(sources: &ResolvedSources) -> HashMap<String, Option<String>> {
    let mut pins: HashMap<String, Option<String>> = HashMap::new();
    for (request, image) in sources.images() {
        let by_tag = request.reference.digest().is_none();
        if by_tag && matches!(request.origin, ImageOrigin::Registry { context: Some(_) }) {
            let digest: Digest = image.digest.clone();
            let pinned = source_of(&request.reference.pinned(digest));
            let known = pins.entry(source_of(&request.reference)).or_insert_with(|| Some(pinned.clone()));
            if known.as_deref() != Some(&*pinned) {
                *known = None;
            }
        }
    }
    pins
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stave_frontend_dockerfile::{ResolvedImage, request::SourceRequest};
    use stave_llb::Op;
    use stave_llb::builder::{About, GraphBuilder};
    use stave_oci::{ImageConfig, Platform};

    use super::*;

    fn request(name: &str, architecture: &str, context: Option<&str>) -> SourceRequest {
        SourceRequest {
            reference: name.parse().expect("a name"),
            platform: Platform::new("linux", architecture, None),
            origin: ImageOrigin::Registry { context: context.map(str::to_owned) },
        }
    }

    #[track_caller]
    fn check(found: &[(SourceRequest, &str)], expected: &str) {
        let mut resolved = Resolved::default();
        for (request, content) in found {
            let image =
                ResolvedImage { digest: Digest::sha256(content.as_bytes()), config: ImageConfig::default() };
            resolved.sources.insert(request.clone(), image);
        }
        let mut graph = GraphBuilder::default();
        let op = SourceOp::new("docker-image://docker.io/library/a:1", BTreeMap::new());
        let output = graph.source(op, &Platform::new("linux", "amd64", None), About::named("a"));
        let pinned = resolved.pinned(graph.finish(Some(output)));
        let Op::Source(source) = &pinned.vertices()[0].op else { panic!("{pinned:?}") };
        assert_eq!(source.raw, expected);
    }

    #[test]
    fn a_named_context_is_the_image_that_was_found() {
        let tag = "docker-image://docker.io/library/a:1";
        let pinned = format!("{tag}@{}", Digest::sha256(b"x"));
        let amd = request("a:1", "amd64", Some("base"));
        let arm = request("a:1", "arm64", Some("base"));
        check(&[(amd.clone(), "x")], &pinned);
        check(&[(amd.clone(), "x"), (arm.clone(), "x")], &pinned);
        check(&[(amd.clone(), "x"), (arm, "y")], tag);
        check(&[(request("b:1", "amd64", Some("base")), "x")], tag);
        check(&[(request("a:1", "amd64", None), "x")], tag);
    }
}
