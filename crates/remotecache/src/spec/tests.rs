//! Options as users write them, and what is said of those that are wrong.

use super::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "AWS_REGION" => Some("eu-1".to_owned()),
        "AWS_ACCESS_KEY_ID" => Some("id".to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some("key".to_owned()),
        _ => None,
    }
}

#[track_caller]
fn to(text: &str) -> ExportSpec {
    ExportSpec::parse(text, &environment).expect("a valid option")
}

#[track_caller]
fn from(text: &str) -> ImportSpec {
    ImportSpec::parse(text, &environment).expect("a valid option")
}

#[track_caller]
fn refused(text: &str, export: Option<&str>, import: Option<&str>) {
    let said = |result: Result<(), SpecError>| result.err().map(|error| error.to_string());
    assert_eq!(said(ExportSpec::parse(text, &|_| None).map(drop)).as_deref(), export, "to {text}");
    assert_eq!(said(ImportSpec::parse(text, &|_| None).map(drop)).as_deref(), import, "from {text}");
}

#[test]
fn a_lone_name_is_a_repository() {
    let reference: Reference = "example.com/app:cache".parse().expect("a name");
    let place = RegistryPlace { reference, insecure: false };
    assert_eq!(from("example.com/app:cache").source, ImportSource::Registry(place.clone()));
    let spec = to("example.com/app:cache");
    assert_eq!(spec.target, ExportTarget::Registry(place));
    assert_eq!((spec.mode, spec.manifest, spec.ignore_error), (Mode::Min, ManifestForm::OciManifest, false));
}

#[test]
fn every_option_is_read() {
    let spec =
        to("type=registry,ref=a/b,mode=max,image-manifest=false,compression=zstd,compression-level=7,\
                   force-compression=,ignore-error=true,registry.insecure=1,mounts=true,mounts-max-size=2GB");
    assert_eq!(spec.mode, Mode::Max);
    assert_eq!(spec.manifest, ManifestForm::OciIndex);
    assert_eq!(
        spec.compression,
        CompressionChoice { algorithm: Compression::Zstd, level: Some(7), force: true }
    );
    assert!(spec.ignore_error);
    assert_eq!(spec.mounts, Some(MountLimits { max_size: Some(2 << 30) }));
    assert!(matches!(spec.target, ExportTarget::Registry(RegistryPlace { insecure: true, .. })));
    assert_eq!(to("type=local,dest=/c,oci-mediatypes=false").manifest, ManifestForm::DockerList);
    let local = to("type=local,dest=/c,tag=x,reset=true").target;
    assert_eq!(local, ExportTarget::Local { dest: "/c".into(), tag: "x".to_owned(), reset: true });
    assert_eq!(to("type=inline").target, ExportTarget::Inline);
}

#[test]
fn s3_takes_what_is_missing_from_the_environment() {
    let ExportTarget::S3(place) = to("type=s3,bucket=b,name=x;y,touch_refresh=1h30m,prefix=p/").target else {
        panic!("an S3 place");
    };
    assert_eq!((place.region.as_str(), place.names.len(), place.parallel), ("eu-1", 2, 4));
    assert_eq!(place.touch_refresh, Duration::from_secs(90 * 60));
    assert!(place.credentials.is_some());
    assert!(!format!("{place:?} {place}").contains("key"));
    refused(
        "type=s3",
        Some("bucket ($AWS_BUCKET) not set for s3 cache"),
        Some("bucket ($AWS_BUCKET) not set for s3 cache"),
    );
}

#[test]
fn what_is_wrong_is_said_as_docker_says_it() {
    refused(
        "mode=max,ref=x",
        Some("type required form> \"mode=max,ref=x\""),
        Some("type required form> \"mode=max,ref=x\""),
    );
    refused("type=registry,x", Some("invalid value x"), Some("invalid value x"));
    refused(
        "type=registry",
        Some("registry cache exporter requires ref"),
        Some("registry cache importer requires ref"),
    );
    refused(
        "type=local",
        Some("local cache exporter requires dest"),
        Some("local cache importer requires src"),
    );
    refused(
        "type=registry,ref=a,oci-mediatypes=false,image-manifest=true",
        Some(
            "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format",
        ),
        Some("unknown option `image-manifest` for registry cache importer"),
    );
    refused(
        "type=gha",
        Some("cache type \"gha\" is not supported; `registry`, `local`, `inline` and `s3` are"),
        Some("cache type \"gha\" is not supported; `registry`, `local`, `inline` and `s3` are"),
    );
    refused("type=x", Some("unknown cache exporter type: \"x\""), Some("unknown cache importer type: \"x\""));
    refused("type=inline", None, Some("unknown cache importer type: \"inline\""));
    refused(
        "type=inline,ref=a",
        Some("unknown option `ref` for inline cache exporter"),
        Some("unknown cache importer type: \"inline\""),
    );
    refused(
        "type=local,dest=a,src=b,mode=most",
        Some("failed to parse mode: \"most\" is not `min` or `max`"),
        Some("unknown option `dest` for local cache importer"),
    );
    refused(
        "a\"b",
        Some("parse error on line 1: bare or extraneous \" in cache option"),
        Some("parse error on line 1: bare or extraneous \" in cache option"),
    );
    refused(
        "type=local,dest=/a,src=/a,compression=estargz",
        Some("unsupported compression type estargz"),
        Some("unknown option `compression` for local cache importer"),
    );
}

#[test]
fn sizes_are_dockers() {
    for (text, expected) in [
        ("10", Some(10)),
        ("1k", Some(1024)),
        ("1.5MiB", Some(3 << 19)),
        ("2gb", Some(2 << 30)),
        ("x", None),
        ("1q", None),
    ] {
        assert_eq!(parse::bytes(text), expected, "{text}");
    }
}
