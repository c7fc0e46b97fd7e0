//! Specifications and what they mean, or why they are refused.

use std::error::Error as _;

use super::*;

fn names(list: &[&str]) -> Vec<Reference> {
    list.iter().map(|name| name.parse().expect("a valid name")).collect()
}

#[track_caller]
fn check(spec: &str, expected: ExportTarget) {
    assert_eq!(spec.parse::<ExportTarget>().map_err(|e| e.kind.to_string()), Ok(expected), "{spec}");
}

#[track_caller]
fn refused(spec: &str, expected: &str) {
    let error = spec.parse::<ExportTarget>().expect_err(spec);
    assert_eq!(error.source().map(ToString::to_string).as_deref(), Some(expected));
}

fn archive(dest: ArchiveDestination) -> ArchiveTarget {
    ArchiveTarget { dest, names: Vec::new(), format: ImageFormat::default() }
}

fn file(path: &str) -> Destination {
    Destination::File(PathBuf::from(path))
}

fn local(dest: &str) -> ExportTarget {
    ExportTarget::Local { dest: dest.into(), options: FilesOptions::default() }
}

fn tar(dest: Destination) -> ExportTarget {
    ExportTarget::Tar { dest, options: FilesOptions::default() }
}

#[test]
fn short_forms() {
    check("out", local("out"));
    check("./a=b", local("./a=b"));
    check("-", tar(Destination::Stdout));
}

#[test]
fn file_systems() {
    check("type=local,dest=/out", local("/out"));
    check("type=tar", tar(Destination::Stdout));
    check("type=tar,dest=-", tar(Destination::Stdout));
    check("TYPE=tar,Dest=x.tar", tar(file("x.tar")));
    check("type=cacheonly", ExportTarget::CacheOnly);
    let options = FilesOptions {
        platform_split: Some(false),
        mode: LocalMode::Delete,
        time: FilesTime::Epoch(7),
        attestation_prefix: "a-".to_owned(),
    };
    check(
        "type=local,dest=d,mode=delete,platform-split=false,source-date-epoch=7,attestation-prefix=a-",
        ExportTarget::Local { dest: "d".into(), options },
    );
}

#[test]
fn files_get_the_time_of_their_build_unless_told_otherwise() {
    let time = |spec: &str| {
        let target: ExportTarget = spec.parse().expect("valid");
        match target.dated(5) {
            ExportTarget::Local { options, .. } | ExportTarget::Tar { options, .. } => options.time,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(time("out"), FilesTime::Epoch(5));
    assert_eq!(time("type=tar"), FilesTime::Epoch(5));
    assert_eq!(time("type=tar,source-date-epoch=7"), FilesTime::Epoch(7));
    assert_eq!(time("type=local,dest=d,source-date-epoch="), FilesTime::Own);
    let image = ExportTarget::store(names(&["a"]));
    assert_eq!(image.clone().dated(5), image);
    for beyond in ["253402300800", "-62167219201", "9223372036854775807"] {
        let expected = "expected a number of seconds since 1970, not beyond the year 9999";
        let text = format!("invalid value `{beyond}` for `source-date-epoch`: {expected}");
        refused(&format!("type=tar,source-date-epoch={beyond}"), &text);
        refused(&format!("type=oci,source-date-epoch={beyond}"), &text);
    }
}

#[test]
fn archives() {
    check("type=oci", ExportTarget::Oci(archive(ArchiveDestination::Tar(Destination::Stdout))));
    check("type=oci,dest=x.tar", ExportTarget::Oci(archive(ArchiveDestination::Tar(file("x.tar")))));
    check("type=oci,dest=d,tar=false", ExportTarget::Oci(archive(ArchiveDestination::Directory("d".into()))));
    check("type=docker,dest=x.tar", ExportTarget::Docker(archive(ArchiveDestination::Tar(file("x.tar")))));
    let mut target = archive(ArchiveDestination::Tar(file("x")));
    target.names = names(&["a:1", "b:2"]);
    target.format.media_types = Some(MediaTypes::Oci);
    target.format.artifact_attestations = true;
    target.format.nondistributable = true;
    (target.format.epoch, target.format.rewrite_timestamps) = (Some(-1), Some(true));
    target.format.compression =
        CompressionChoice { algorithm: Some(Compression::Zstd), level: Some(19), force: true };
    target.format.annotations.manifest.insert("org.X".into(), "y=z".into());
    target.format.annotations.manifest_descriptor.insert("d".into(), "1".into());
    target.format.annotations.index.insert("i".into(), "2".into());
    check(
        "type=oci,\"name=a:1,b:2\",dest=x,oci-mediatypes=true,compression=zstd,compression-level=19,\
         oci-artifact=true,prefer-nondist-layers=1,source-date-epoch=-1,rewrite-timestamp=true,\
         force-compression=1,annotation.org.X=y=z,annotation-manifest-descriptor.d=1,annotation-index.i=2",
        ExportTarget::Oci(target),
    );
}

#[test]
fn images() {
    let stored = |list: &[&str]| ImageTarget { names: names(list), store: true, ..ImageTarget::default() };
    check("type=image", ExportTarget::Image(stored(&[])));
    check("type=image,name=a", ExportTarget::Image(stored(&["a"])));
    check("type=docker,name=a", ExportTarget::Image(stored(&["a"])));
    let pushed = ImageTarget { push: Some(PushOptions::default()), ..stored(&["a"]) };
    check("type=image,name=a,push=true", ExportTarget::Image(pushed.clone()));
    check("type=registry,name=a", ExportTarget::Image(ImageTarget { store: false, ..pushed.clone() }));
    let dangling = Some(DanglingName { prefix: names(&["cache"])[0].clone(), empty_only: true });
    let named = ImageTarget { canonical_names: true, dangling, ..stored(&["a"]) };
    check(
        "type=image,name=a,name-canonical=true,dangling-name-prefix=cache,danging-name-empty-only=true",
        ExportTarget::Image(named),
    );
    let by_digest = ImageTarget { push: Some(PushOptions { by_digest: true, insecure: true }), ..pushed };
    check(
        "type=image,name=a,push=true,push-by-digest=true,registry.insecure=true",
        ExportTarget::Image(by_digest),
    );
    // How to push is not to push.
    check("type=image,name=a,push-by-digest=true", ExportTarget::Image(stored(&["a"])));
}

#[test]
fn refusals_say_what_to_write() {
    refused("", "empty: expected a directory, `-` or `type=…`");
    refused(
        "type=",
        "`type` is required: one of `image`, `registry`, `oci`, `docker`, `local`, `tar`, `cacheonly`",
    );
    refused(
        "dest=a,push=true",
        "`type` is required: one of `image`, `registry`, `oci`, `docker`, `local`, `tar`, `cacheonly`",
    );
    refused(
        "type=ocy",
        "unknown type `ocy`: expected one of `image`, `registry`, `oci`, `docker`, `local`, `tar`, `cacheonly`, did you mean `oci`?",
    );
    refused("type=oci,dst=x", "unknown key `dst` for type `oci`, did you mean `dest`?");
    refused("type=image,zzzzzzz=1", "unknown key `zzzzzzz` for type `image`");
    refused("type=local,dest=x,push=true", "unknown key `push` for type `local`");
    refused("type=oci,dest", "`dest` is not of the form `key=value`");
    refused("type=oci,dest=a,dest=b", "`dest` is given twice");
    refused("type=local", "type `local` needs `dest`");
    refused("type=oci,tar=false", "type `oci` needs `dest`");
    refused("type=docker,tar=false", "type `docker` needs `dest`");
    refused("type=docker,context=,tar=false", "type `docker` needs `dest`");
    refused("type=local,dest=-", "a directory cannot go to standard output: give `dest` a path");
    refused("type=image,push=maybe", "invalid value `maybe` for `push`: expected `true` or `false`");
    refused(
        "type=image,compression=xz",
        "invalid value `xz` for `compression`: expected `uncompressed`, `gzip` or `zstd`",
    );
    refused("type=image,compression=estargz", "not supported yet: compression `estargz`");
    refused(
        "type=image,compression-level=10",
        "invalid value `10` for `compression-level`: expected a number from 0 to 9 for gzip",
    );
    refused("type=image,compatibility-version=20", "not supported yet: output key `compatibility-version`");
    refused(
        "type=image,annotations-index.a=b",
        "invalid annotation key `annotations-index.a`: expected `annotation[-TYPE][[PLATFORM]].NAME`, \
         TYPE being `manifest`, `manifest-descriptor`, `index` or `index-descriptor`",
    );
    refused(
        "type=image,oci-artifact=true,oci-mediatypes=false",
        "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"",
    );
    refused(
        "type=oci,oci-artifact=true,oci-mediatypes=false",
        "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"",
    );
    refused("type=local,dest=x,mode=move", "invalid value `move` for `mode`: expected `copy` or `delete`");
    refused("type=tar,mode=copy", "unknown key `mode` for type `tar`");
    refused(
        "type=image,registry.insecur=1",
        "unknown key `registry.insecur` for type `image`, did you mean `registry.insecure`?",
    );
    refused(
        "type=image,source-date-epoch=now",
        "invalid value `now` for `source-date-epoch`: expected a number of seconds since 1970, not beyond the year 9999",
    );
    refused("type=image,\"name=a", "bare or unclosed `\"`: quote whole fields, as in `\"name=a,b\"`");
    refused("type=image,name=UPPER", "invalid image name in `name`");
    refused(&"x".repeat(MAX_SPEC_LENGTH + 1), "longer than 65536 bytes");
}

#[test]
fn tags_fill_in_names_and_push_demands_one() {
    let target: ExportTarget = "type=image,push=true".parse().expect("valid");
    assert!(target.validate().is_err());
    let target = target.named(&names(&["a"]));
    assert!(target.validate().is_ok());
    let kept: ExportTarget = "type=image,name=own".parse().expect("valid");
    assert_eq!(kept.clone().named(&names(&["a"])), kept);
    assert!(matches!(kept.pushed(), ExportTarget::Image(ImageTarget { push: Some(_), .. })));
}

#[test]
fn knows_what_goes_to_standard_output() {
    for (spec, expected) in [("-", true), ("out", false), ("type=oci", true), ("type=oci,dest=x", false)] {
        assert_eq!(spec.parse::<ExportTarget>().expect(spec).writes_stdout(), expected, "{spec}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_strange(text in "(type=(image|oci|local|docker),)?[a-z\",=. -]{0,60}") {
        // A target or an error; and an error that shows no more than a line's worth of the text.
        if let Err(error) = text.parse::<ExportTarget>() {
            proptest::prop_assert!(error.spec.len() <= 200);
        }
    }

    #[test]
    fn quoting_every_field_changes_nothing(fields in proptest::collection::vec("[a-z,\"=]{1,8}", 1..5)) {
        let quoted: Vec<_> = fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
        proptest::prop_assert_eq!(csv::fields(&quoted.join(",")).ok(), Some(fields));
    }
}

/// Every option that BuildKit's exporters and docker's clients have, on every type: taken, or refused by its name.
#[test]
fn every_option_of_buildkit_is_taken_or_refused_by_name() {
    const IMAGES: &[&str] = &["image", "registry"];
    const ARCHIVES: &[&str] = &["oci", "docker"];
    const WITH_LAYERS: &[&str] = &["image", "registry", "oci", "docker"];
    const FILES: &[&str] = &["local", "tar"];
    const ALL: &[&str] = &["image", "registry", "oci", "docker", "local", "tar", "cacheonly"];
    let taken: &[(&str, &[&str])] = &[
        ("name=a:1", WITH_LAYERS),
        ("oci-mediatypes=true", WITH_LAYERS),
        ("oci-artifact=true", WITH_LAYERS),
        ("attestation-inline=true", WITH_LAYERS),
        ("compression=uncompressed", WITH_LAYERS),
        ("compression=gzip", WITH_LAYERS),
        ("compression=zstd", WITH_LAYERS),
        ("compression-level=3", WITH_LAYERS),
        ("force-compression=true", WITH_LAYERS),
        ("prefer-nondist-layers=true", WITH_LAYERS),
        ("rewrite-timestamp=true", WITH_LAYERS),
        ("source-date-epoch=1", &["image", "registry", "oci", "docker", "local", "tar"]),
        ("annotation.a=b", WITH_LAYERS),
        ("annotation[linux/amd64].a=b", WITH_LAYERS),
        ("annotation-manifest.a=b", WITH_LAYERS),
        ("annotation-manifest[linux/amd64].a=b", WITH_LAYERS),
        ("annotation-manifest-descriptor.a=b", WITH_LAYERS),
        ("annotation-manifest-descriptor[linux/amd64].a=b", WITH_LAYERS),
        ("annotation-index.a=b", WITH_LAYERS),
        ("annotation-index-descriptor.a=b", WITH_LAYERS),
        ("push=true", IMAGES),
        ("push-by-digest=true", IMAGES),
        ("registry.insecure=true", IMAGES),
        ("unpack=true", IMAGES),
        ("store=true", IMAGES),
        ("name-canonical=true", IMAGES),
        ("dangling-name-prefix=a", IMAGES),
        ("danging-name-empty-only=true", IMAGES),
        ("dest=x", &["oci", "docker", "local", "tar"]),
        ("tar=true", ARCHIVES),
        ("context=default", &["docker"]),
        ("platform-split=true", FILES),
        ("attestation-prefix=a", FILES),
        ("mode=copy", &["local"]),
        ("mode=delete", &["local"]),
    ];
    for kind in ALL {
        for (option, kinds) in taken {
            let needs_dest = *kind == "local" && !option.starts_with("dest=");
            let spec = format!("type={kind}{},{option}", if needs_dest { ",dest=x" } else { "" });
            match spec.parse::<ExportTarget>() {
                Ok(_) => assert!(kinds.contains(kind), "{spec} is taken"),
                Err(error) => {
                    assert!(!kinds.contains(kind), "{spec}: {}", error.kind);
                    let key = option.split(['=', '[']).next().unwrap_or(option);
                    assert!(error.kind.to_string().contains(key), "{spec}: {}", error.kind);
                }
            }
        }
    }
    for (option, word) in [
        ("compression=estargz", "estargz"),
        ("compression=nydus", "nydus"),
        ("compatibility-version=20", "compatibility-version"),
        ("buildinfo=true", "buildinfo"),
        ("buildinfo-attrs=true", "buildinfo-attrs"),
        ("unpack-platform=linux/amd64", "unpack-platform"),
    ] {
        for kind in WITH_LAYERS {
            let error = format!("type={kind},{option}").parse::<ExportTarget>().expect_err(option);
            assert!(matches!(error.kind, ExportSpecErrorKind::NotSupported(_)), "{kind} {option}");
            assert!(error.kind.to_string().contains(word), "{}", error.kind);
        }
    }
}

#[test]
fn engines_are_named_by_context() {
    let target = |name: &str| {
        let engine = EngineName::Context(name.to_owned());
        ExportTarget::Engine(EngineTarget { engine, names: names(&["a"]), format: ImageFormat::default() })
    };
    check("type=docker,context=remote,name=a", target("remote"));
    check("type=docker,context=,name=a", target(""));
    refused("type=docker,context=a,dest=x", "exporter option \"context\" conflicts with \"dest\"");
    let at = |text: &str| {
        let look_up = |name: &str| format!("unix:///{name}").parse().map_err(|_| ());
        text.parse::<ExportTarget>().expect("valid").at_engine(look_up)
    };
    let Ok(ExportTarget::Engine(found)) = at("type=docker,context=remote") else { panic!("an engine") };
    assert_eq!(found.engine, EngineName::At(EngineAddress::Unix("/remote".into())));
    assert!(matches!(at("type=docker"), Ok(ExportTarget::Image(_))));
}
