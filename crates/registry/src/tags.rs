//! The tags of a repository.
//!
//! Owns the end point of the distribution specification that lists them. Must not know what they name. Start with
//! [`Client::tags`].

use reqwest::header::LINK;
use serde::Deserialize;
use stave_oci::{ManifestError, Reference};
use url::Url;

use crate::answer::Answer;
use crate::auth::ScopeSet;
use crate::client::Subject;
use crate::config::Capability;
use crate::endpoint::endpoints;
use crate::error::{Action, ErrorKind};
use crate::limits::{MAX_MANIFEST_BYTES, MAX_TAG_BYTES, MAX_TAG_PAGES};
use crate::request::{Call, Exchange};
use crate::{Client, RegistryError};

/// One page, as the specification has it; registries say `null` where there are none.
#[derive(Deserialize)]
struct Page {
    tags: Option<Vec<String>>,
}

impl Client {
    /// What the repository of `name` has tags for, in the registry's order. Mirrors are not asked: they know what was
    /// asked of them.
    ///
    /// # Errors
    /// [`RegistryError`], also for what no tag can be.
    pub async fn tags(&self, name: &Reference) -> Result<Vec<Reference>, RegistryError> {
        // No tag is meant, whatever the name has.
        let about = Subject { name: name.familiar_name(), ..Subject::of(Action::Resolve, name) };
        let registry = name.registry();
        let Some(endpoint) = endpoints(&self.shared.config.registries, registry, Capability::Resolve).pop()
        else {
            return Err(about.error(registry, ErrorKind::NoEndpoint(registry.to_owned())));
        };
        let host = endpoint.host.clone();
        let listed = async {
            let exchange = Exchange::open(&self.shared, endpoint, ScopeSet::pull(name.repository())).await?;
            listed(&exchange, name).await
        };
        listed.await.map_err(|kind| about.error(&host, kind))
    }
}

async fn listed(exchange: &Exchange, name: &Reference) -> Result<Vec<Reference>, ErrorKind> {
    let mut url = exchange.url(&format!("{}/tags/list", name.repository()))?;
    let (mut tags, mut read) = (Vec::new(), 0);
    for _ in 0..MAX_TAG_PAGES {
        let answer = exchange.send(&Call::get(url)).await?;
        if !answer.response.status().is_success() {
            return Err(answer.fault().await.kind);
        }
        let next = next_page(&answer);
        let bytes = answer.body("list of tags", MAX_MANIFEST_BYTES).await?;
        read += bytes.len() as u64;
        if read > MAX_TAG_BYTES {
            break;
        }
        let page: Page = serde_json::from_slice(&bytes).map_err(|source| {
            ErrorKind::Manifest(ManifestError::Json { media_type: "application/json".to_owned(), source })
        })?;
        for tag in page.tags.into_iter().flatten() {
            tags.push(tagged(name, &tag)?);
        }
        match next {
            Some(next) => url = next,
            None => return Ok(tags),
        }
    }
    Err(ErrorKind::TooLarge { what: "list of tags", limit: MAX_TAG_BYTES })
}

/// A name with a tag that a registry told.
fn tagged(name: &Reference, tag: &str) -> Result<Reference, ErrorKind> {
    let text = format!("{}:{tag}", name.name());
    let parsed = text.parse::<Reference>().ok();
    let meant = |parsed: &Reference| {
        parsed.name() == name.name() && parsed.tag() == Some(tag) && parsed.digest().is_none()
    };
    parsed.filter(meant).ok_or(ErrorKind::Address(text))
}

/// Where a `Link` header says that a list goes on (RFC 8288), if that is at the same host.
pub(crate) fn next_page(answer: &Answer) -> Option<Url> {
    let text = answer.header(LINK.as_str())?;
    let (target, parameters) = text.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|one| matches!(one.trim(), "rel=\"next\"" | "rel=next"));
    let next = answer.url.join(target).ok()?;
    (is_next && next.origin() == answer.url.origin()).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_tags() {
        let name: Reference = "example.com/me/app".parse().expect("a name");
        let check = |tag: &str| tagged(&name, tag).map(|found| found.familiar()).ok();
        assert_eq!(check("v1.2").as_deref(), Some("example.com/me/app:v1.2"));
        let digest = format!("v1@sha256:{}", "0".repeat(64));
        for tag in ["", "../x", "a:b", "a/b", "\u{1b}[2J", &digest] {
            assert_eq!(check(tag), None, "{tag:?}");
        }
    }
}
