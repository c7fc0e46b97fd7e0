//! Mount flags of RUN: what they mean and how they are refused.

use super::*;

fn plain(options: &str) -> Result<Mount, MountError> {
    parse(options, |value| Ok::<_, ExpandError>(value.to_owned()))
}

#[track_caller]
fn check_error(options: &str, message: &str) {
    assert_eq!(plain(options).map_err(|error| error.to_string()), Err(message.to_owned()), "{options}");
}

#[test]
fn kinds_take_their_options() {
    let mount = plain("type=cache,target=/c,id=x,sharing=locked,mode=0700,uid=1,gid=2").expect("sound");
    assert_eq!(mount.kind, MountKind::Cache { sharing: Sharing::Locked });
    assert_eq!((mount.mode, mount.uid, mount.gid, mount.read_only), (Some(0o700), Some(1), Some(2), false));
    let mount = plain("source=a,target=b").expect("sound");
    assert_eq!((mount.kind, mount.read_only), (MountKind::Bind, true));
    assert!(!plain("target=b,rw").expect("sound").read_only);
    assert!(plain("target=b,rw=false").expect("sound").read_only);
    let mount = plain("type=tmpfs,target=/t,size=1.5m").expect("sound");
    assert_eq!(mount.kind, MountKind::Tmpfs { size: 1_572_864 });
    let mount = plain("type=secret,id=x,required,env=").expect("sound");
    assert_eq!((mount.kind, mount.env), (MountKind::Secret { required: true }, Some(String::new())));
}

#[test]
fn wrong_options_are_named() {
    for (options, message) in [
        ("type=cach,target=/c", "unsupported mount type \"cach\""),
        ("tragets=/c", "unexpected key 'tragets' in 'tragets=/c'"),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        ("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("ro=maybe", "invalid value for ro: maybe"),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,uid=-1", "invalid value -1 for uid"),
        ("target=/x,mode=0700", "mode not allowed for \"bind\" type mounts"),
        ("type=secret,from=x,id=y", "secret mount should not have a from"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=x,src=y", "both source and id can't be set"),
        ("type=cache,sharing=often", "unsupported sharing value \"often\""),
        ("target=/x,sharing=shared", "invalid cache sharing set for bind mount"),
    ] {
        check_error(options, message);
    }
    assert_eq!(plain("type=cach").map_err(|error| error.suggestion()), Err(Some("cache".to_owned())));
    assert_eq!(plain("tagret=/x").map_err(|error| error.suggestion()), Err(Some("target".to_owned())));
}

#[test]
fn from_is_read_before_expansion() {
    assert_eq!(from_of("type=bind,FROM=base,target=/x"), Ok(Some("base".to_owned())));
    assert_eq!(from_of("target=$x"), Ok(None));
    assert_eq!(
        from_of("from=$x").map_err(|error| error.to_string()),
        Err("'from' doesn't support variable expansion, define alias stage instead".to_owned())
    );
}

#[test]
fn devices_have_a_name() {
    let read = |options| parse_device(options).map_err(|error| error.to_string());
    assert_eq!(read("vendor/class=x,required"), Ok(Device { name: "vendor/class=x".into(), required: true }));
    assert_eq!(read("name=a"), Ok(Device { name: "a".into(), required: false }));
    assert_eq!(read("a,b=c"), Err("unexpected key 'b' in 'b=c'".into()));
}
