//! `-o`, `-t`, `--attest` and caches, as options of a daemon. Pure. Start with [`read`].

use std::collections::BTreeMap;
use std::path::Path;

use stave_daemon::client::{RemoteExport, Sink};

use crate::commands::build::outputs;
use crate::report::Failure;

/// Where the result goes; what is to be loaded comes here as the archive `loaded`, or stays where the build is made.
pub(super) fn read(flags: &outputs::Flags, loaded: Option<&Path>) -> Result<Vec<RemoteExport>, Failure> {
    let names = flags.names();
    let stays = flags.load && loaded.is_none();
    let Some(path) = loaded else { return exports(&flags.outputs, &names, flags.push, stays) };
    // Without anything else it is not stored there as well.
    let mut exports = match flags.outputs.is_empty() && !flags.push {
        true => Vec::new(),
        false => exports(&flags.outputs, &names, flags.push, stays)?,
    };
    let mut attributes = BTreeMap::new();
    if !names.is_empty() {
        attributes.insert("name".to_owned(), names.join(","));
    }
    exports.push(RemoteExport { kind: "docker".to_owned(), attributes, sink: Sink::File(path.to_owned()) });
    Ok(exports)
}

fn exports(specs: &[String], names: &[String], push: bool, load: bool) -> Result<Vec<RemoteExport>, Failure> {
    let mut exports = specs.iter().map(|spec| export(spec, names)).collect::<Result<Vec<_>, _>>()?;
    let has_image = exports.iter().any(|export| export.kind == "image");
    if push && has_image {
        for export in exports.iter_mut().filter(|export| export.kind == "image") {
            export.attributes.insert("push".to_owned(), "true".to_owned());
        }
    } else if push || exports.is_empty() || (load && !has_image) {
        let mut attributes = BTreeMap::from([("store".to_owned(), "true".to_owned())]);
        if !names.is_empty() {
            attributes.insert("name".to_owned(), names.join(","));
        }
        if push {
            attributes.insert("push".to_owned(), "true".to_owned());
        }
        exports.push(RemoteExport { kind: "image".to_owned(), attributes, sink: Sink::None });
    }
    // A daemon that exports nothing keeps its cache all the same, and BuildKit's knows no exporter of that name.
    exports.retain(|export| export.kind != "cacheonly");
    Ok(exports)
}

fn export(spec: &str, names: &[String]) -> Result<RemoteExport, Failure> {
    let usage = |words: &str| Failure::usage(format!("invalid output `{spec}`: {words}"));
    let mut attributes = match spec {
        "-" => BTreeMap::from([("type", "tar"), ("dest", "-")].map(owned)),
        path if !path.contains('=') => BTreeMap::from([("type", "local"), ("dest", path)].map(owned)),
        spec => fields(spec).ok_or_else(|| usage("expected KEY=VALUE"))?,
    };
    let mut kind = attributes.remove("type").ok_or_else(|| usage("type is required"))?;
    if kind == "registry" {
        kind = "image".to_owned();
        attributes.insert("push".to_owned(), "true".to_owned());
    }
    let is_named = matches!(kind.as_str(), "image" | "oci" | "docker");
    if is_named && !names.is_empty() && !attributes.contains_key("name") {
        attributes.insert("name".to_owned(), names.join(","));
    }
    let dest = attributes.remove("dest").or_else(|| attributes.remove("output"));
    let is_folder = attributes.get("tar").is_some_and(|value| value == "false");
    let sink = match (kind.as_str(), dest.as_deref()) {
        ("image" | "cacheonly", _) => Sink::None,
        ("oci" | "docker", _) if is_folder => {
            return Err(usage("tar=false is not supported yet of a daemon"));
        }
        ("local", None) => return Err(usage("dest is required")),
        ("local", Some("-")) => return Err(usage("dest cannot be standard output")),
        ("local", Some(path)) => Sink::Directory(path.into()),
        (_, Some("-")) => Sink::Stdout,
        (_, Some(path)) => Sink::File(path.into()),
        ("docker", None) => return Err(usage("dest is required of a daemon")),
        (_, None) => Sink::Stdout,
    };
    Ok(RemoteExport { kind, attributes, sink })
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// `KEY=VALUE` pairs, as CSV has them: a field in quotes may hold commas.
fn fields(text: &str) -> Option<BTreeMap<String, String>> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                fields.last_mut()?.extend(letters.next());
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            other => fields.last_mut()?.push(other),
        }
    }
    let pair = |field: &String| Some(owned(field.split_once('=')?));
    fields.iter().filter(|field| !field.is_empty()).map(pair).collect()
}

/// `--provenance`, `--sbom` and `--attest`.
pub(super) fn attestations(flags: &outputs::Flags) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    for (kind, text, usual) in [("provenance", &flags.provenance, "mode=min"), ("sbom", &flags.sbom, "")] {
        match text.as_deref() {
            None | Some("false") => {}
            Some("true") => drop(found.insert(format!("attest:{kind}"), usual.to_owned())),
            Some(text) => drop(found.insert(format!("attest:{kind}"), text.to_owned())),
        }
    }
    for text in &flags.attest {
        let parts: Vec<&str> = text.split(',').collect();
        let kind = parts.iter().find_map(|part| part.strip_prefix("type="));
        let kind = kind.ok_or_else(|| Failure::usage("attestation type not specified"))?;
        let rest: Vec<&str> = parts.iter().copied().filter(|part| !part.starts_with("type=")).collect();
        found.insert(format!("attest:{kind}"), rest.join(","));
    }
    Ok(found)
}

/// A cache's kind and its options.
pub(super) type Cache = (String, BTreeMap<String, String>);

/// `--cache-from` and `--cache-to`.
pub(super) fn caches(specs: &[String]) -> Result<Vec<Cache>, Failure> {
    let read = |spec: &String| {
        if !spec.contains('=') {
            return Ok(("registry".to_owned(), BTreeMap::from([owned(("ref", spec))])));
        }
        let usage = || Failure::usage(format!("invalid cache `{spec}`: expected KEY=VALUE"));
        let mut attributes = fields(spec).ok_or_else(usage)?;
        let kind = attributes.remove("type").ok_or_else(usage)?;
        match kind.as_str() {
            "local" => Err(Failure::usage("not supported yet of a daemon: a cache in a directory")),
            _ => Ok((kind, attributes)),
        }
    };
    specs.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(specs: &[&str], names: &[&str], push: bool, expected: &[(&str, &str, Sink)]) {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let found = exports(&list(specs), &list(names), push, false).expect("are outputs");
        let found = found.iter().map(|export| {
            let pairs = export.attributes.iter().map(|(key, value)| format!("{key}={value}"));
            (export.kind.clone(), pairs.collect::<Vec<_>>().join(" "), export.sink.clone())
        });
        let expected = expected
            .iter()
            .map(|(kind, pairs, sink)| ((*kind).to_owned(), (*pairs).to_owned(), sink.clone()));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn results_go_where_they_shall() {
        check(&[], &["a", "b"], false, &[("image", "name=a,b store=true", Sink::None)]);
        check(&[], &["a"], true, &[("image", "name=a push=true store=true", Sink::None)]);
        check(&["type=cacheonly"], &["a"], false, &[]);
        check(&["out"], &[], false, &[("local", "", Sink::Directory("out".into()))]);
        check(&["-"], &[], false, &[("tar", "", Sink::Stdout)]);
        let oci = ("oci", "name=a", Sink::File("x.tar".into()));
        check(&["type=oci,dest=x.tar"], &["a"], false, &[oci]);
        check(&["type=registry,name=r/a"], &[], false, &[("image", "name=r/a push=true", Sink::None)]);
        let quoted = ("image", "name=a,b push=true", Sink::None);
        check(&["type=image,\"name=a,b\",push=true"], &[], false, &[quoted]);
        for wrong in ["type=local", "type=docker", "dest=x", "type=local,dest=-"] {
            assert!(export(wrong, &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn caches_of_a_daemon() {
        let found =
            caches(&["a/b".to_owned(), "type=registry,ref=c,mode=max".to_owned()]).expect("are caches");
        assert_eq!(found[0].1["ref"], "a/b");
        assert_eq!((found[1].0.as_str(), found[1].1["mode"].as_str()), ("registry", "max"));
        assert!(caches(&["type=local,src=x".to_owned()]).is_err());
    }
}
