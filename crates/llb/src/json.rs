//! Operations as protobuf-JSON with the field names of BuildKit's `ops.proto`.
//!
//! Owns the JSON rendering for people and tools: defaults left out, 64-bit numbers as strings, bytes
//! in base64. Must not be parsed by anything of ours. Start with [`vertices`].

use serde_json::{Map, Value, json};

use crate::{
    definition::{Definition, Vertex},
    exec::{ContentCache, ExecOp, Mount, MountOwner, NetMode, SecurityMode, Sharing},
    file::{Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, UserOrGroup},
    op::Op,
    wire::to_wire,
};

/// Every operation as `{"digest", "op", "description"}`, the last one, which names the output, included.
pub fn vertices(definition: &Definition) -> Vec<Value> {
    let mut rows: Vec<Value> = definition
        .vertices()
        .iter()
        .map(|vertex| {
            let mut row = Object::default();
            row.put("digest", json!(vertex.digest));
            row.put("op", op(vertex));
            if !vertex.metadata.description.is_empty() {
                row.put("description", json!(vertex.metadata.description));
            }
            row.done()
        })
        .collect();
    if !definition.outputs().is_empty() {
        rows.push(json!({"digest": definition.digest(), "op": {"inputs": edges(definition.outputs())}}));
    }
    rows
}

/// A vertex's `pb.Op`.
pub fn op(vertex: &Vertex) -> Value {
    let mut object = Object::default();
    if !vertex.inputs.is_empty() {
        object.put("inputs", edges(&vertex.inputs));
    }
    object.put(vertex.op.kind(), body(&vertex.op, vertex.inputs.len()));
    if let Some(platform) = &vertex.platform {
        let mut one = Object::default();
        one.text("Architecture", &platform.architecture);
        one.text("OS", &platform.os);
        one.text("Variant", platform.variant.as_deref().unwrap_or_default());
        one.text("OSVersion", platform.os_version.as_deref().unwrap_or_default());
        one.texts("OSFeatures", &platform.os_features);
        object.put("platform", one.done());
    }
    if let Some(filter) = &vertex.constraints {
        let mut one = Object::default();
        one.texts("filter", filter);
        object.put("constraints", one.done());
    }
    object.done()
}

#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.put(name, json!(value));
        }
    }

    fn texts(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.put(name, json!(values));
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.put(name, json!(true));
        }
    }

    fn long(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.put(name, json!(value.to_string()));
        }
    }

    fn number(&mut self, name: &str, value: impl Into<i64>) {
        let value = value.into();
        if value != 0 {
            self.put(name, json!(value));
        }
    }

    fn list(&mut self, name: &str, values: Vec<Value>) {
        if !values.is_empty() {
            self.put(name, Value::Array(values));
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn edges(of: &[crate::Edge]) -> Value {
    let one = |edge: &crate::Edge| {
        let mut object = Object::default();
        object.put("digest", json!(edge.vertex));
        object.long("index", edge.output.into());
        object.done()
    };
    Value::Array(of.iter().map(one).collect())
}

fn body(op: &Op, inputs: usize) -> Value {
    let mut object = Object::default();
    let input = |at: Option<u32>| {
        let mut one = Object::default();
        one.long("input", to_wire::index(at));
        one.done()
    };
    match op {
        Op::Source(source) => {
            object.text("identifier", &source.raw);
            if !source.attrs.is_empty() {
                object.put("attrs", json!(source.attrs));
            }
        }
        Op::Exec(exec) => exec_op(exec, &mut object),
        Op::File(file) => {
            object.list("actions", file.actions.iter().map(|action| file_action(action, inputs)).collect());
        }
        Op::Merge(merge) => object.list("inputs", merge.inputs.iter().map(|at| input(*at)).collect()),
        Op::Diff(diff) => {
            object.put("lower", input(diff.lower));
            object.put("upper", input(diff.upper));
        }
        Op::Passthrough(pass) => {
            object.text("id", &pass.id);
            object.list("outputs", pass.outputs.iter().map(|at| json!(at.to_string())).collect());
        }
        Op::Build(build) => {
            object.long("builder", to_wire::index(build.builder));
            if !build.inputs.is_empty() {
                let all = build.inputs.iter().map(|(name, at)| (name.clone(), input(*at))).collect();
                object.put("inputs", Value::Object(all));
            }
            if let Some(inner) = &build.definition {
                object.put("def", Value::Array(vertices(inner)));
            }
            if !build.attrs.is_empty() {
                object.put("attrs", json!(build.attrs));
            }
        }
    }
    object.done()
}

fn exec_op(exec: &ExecOp, object: &mut Object) {
    object.put("meta", meta(exec));
    object.list("mounts", exec.mounts.iter().map(mount).collect());
    match exec.network {
        NetMode::Default => {}
        NetMode::Host => object.text("network", "HOST"),
        NetMode::None => object.text("network", "NONE"),
    }
    if exec.security == SecurityMode::Insecure {
        object.text("security", "INSECURE");
    }
    let secrets = exec.secret_env.iter().map(|secret| {
        let mut one = Object::default();
        one.text("ID", &secret.id);
        one.text("name", &secret.name);
        one.flag("optional", secret.optional);
        one.done()
    });
    object.list("secretenv", secrets.collect());
    let devices = exec.devices.iter().map(|device| {
        let mut one = Object::default();
        one.text("name", &device.name);
        one.flag("optional", device.optional);
        one.done()
    });
    object.list("cdiDevices", devices.collect());
}

fn meta(exec: &ExecOp) -> Value {
    let mut object = Object::default();
    object.texts("args", &exec.args);
    object.texts("env", &exec.env);
    object.text("cwd", &exec.cwd);
    object.text("user", &exec.user);
    if let Some(proxy) = &exec.proxy_env {
        let mut one = Object::default();
        one.text("http_proxy", &proxy.http_proxy);
        one.text("https_proxy", &proxy.https_proxy);
        one.text("ftp_proxy", &proxy.ftp_proxy);
        one.text("no_proxy", &proxy.no_proxy);
        one.text("all_proxy", &proxy.all_proxy);
        object.put("proxy_env", one.done());
    }
    let hosts = exec.extra_hosts.iter().map(|line| json!({"Host": line.host, "IP": line.ip}));
    object.list("extraHosts", hosts.collect());
    object.text("hostname", &exec.hostname);
    let limits = exec.ulimits.iter().map(|limit| {
        let mut one = Object::default();
        one.text("Name", &limit.name);
        one.long("Soft", limit.soft);
        one.long("Hard", limit.hard);
        one.done()
    });
    object.list("ulimit", limits.collect());
    object.text("cgroupParent", &exec.cgroup_parent);
    object.flag("removeMountStubsRecursive", exec.remove_mount_stubs);
    object.list("validExitCodes", exec.valid_exit_codes.iter().map(|code| json!(code)).collect());
    object.done()
}

fn mount(of: &Mount) -> Value {
    let mut object = Object::default();
    object.long("input", to_wire::index(of.input()));
    object.text("dest", of.target());
    if let Mount::Bind { .. } | Mount::Cache { .. } | Mount::Tmpfs { .. } = of {
        object.long("output", to_wire::index(of.output()));
    }
    match of {
        Mount::Bind { selector, readonly, content_cache, .. } => {
            object.text("selector", selector);
            object.flag("readonly", *readonly);
            match content_cache {
                ContentCache::Default => {}
                ContentCache::On => object.text("contentCache", "ON"),
                ContentCache::Off => object.text("contentCache", "OFF"),
            }
        }
        Mount::Cache { selector, readonly, id, sharing, .. } => {
            object.text("selector", selector);
            object.flag("readonly", *readonly);
            object.text("mountType", "CACHE");
            let mut one = Object::default();
            one.text("ID", id);
            match sharing {
                Sharing::Shared => {}
                Sharing::Private => one.text("sharing", "PRIVATE"),
                Sharing::Locked => one.text("sharing", "LOCKED"),
            }
            object.put("cacheOpt", one.done());
        }
        Mount::Tmpfs { size, readonly, .. } => {
            object.flag("readonly", *readonly);
            object.text("mountType", "TMPFS");
            let mut one = Object::default();
            one.long("size", *size);
            object.put("TmpfsOpt", one.done());
        }
        Mount::Secret { id, owner, optional, .. } => {
            object.text("mountType", "SECRET");
            object.put("secretOpt", owned(id, *owner, *optional));
        }
        Mount::Ssh { id, owner, optional, .. } => {
            object.text("mountType", "SSH");
            object.put("SSHOpt", owned(id, *owner, *optional));
        }
    }
    object.done()
}

fn owned(id: &str, owner: MountOwner, optional: bool) -> Value {
    let mut one = Object::default();
    one.text("ID", id);
    one.number("uid", owner.uid);
    one.number("gid", owner.gid);
    one.number("mode", owner.mode);
    one.flag("optional", optional);
    one.done()
}

fn file_input(of: FileInput, inputs: usize) -> i64 {
    match of {
        FileInput::Scratch => -1,
        FileInput::Input(at) => i64::from(at),
        FileInput::Action(at) => i64::from(at) + i64::try_from(inputs).unwrap_or(i64::MAX / 2),
    }
}

fn file_action(of: &FileAction, inputs: usize) -> Value {
    let mut object = Object::default();
    object.long("input", file_input(of.input, inputs));
    object.long("secondaryInput", file_input(of.secondary, inputs));
    object.long("output", to_wire::index(of.output));
    let mut one = Object::default();
    let name = match &of.kind {
        FileActionKind::Copy(copy) => {
            copy_action(copy, inputs, &mut one);
            "copy"
        }
        FileActionKind::Mkfile(file) => {
            one.text("path", &file.path);
            one.number("mode", file.mode);
            one.text("data", &base64(&file.data));
            owner(file.owner.as_ref(), inputs, &mut one);
            one.long("timestamp", file.timestamp.unwrap_or(-1));
            "mkfile"
        }
        FileActionKind::Mkdir(dir) => {
            one.text("path", &dir.path);
            one.number("mode", dir.mode);
            one.flag("makeParents", dir.make_parents);
            owner(dir.owner.as_ref(), inputs, &mut one);
            one.long("timestamp", dir.timestamp.unwrap_or(-1));
            "mkdir"
        }
        FileActionKind::Rm(rm) => {
            one.text("path", &rm.path);
            one.flag("allowNotFound", rm.allow_not_found);
            one.flag("allowWildcard", rm.allow_wildcard);
            "rm"
        }
        FileActionKind::Symlink(link) => {
            one.text("oldpath", &link.target);
            one.text("newpath", &link.path);
            owner(link.owner.as_ref(), inputs, &mut one);
            one.long("timestamp", link.timestamp.unwrap_or(-1));
            "symlink"
        }
    };
    object.put(name, one.done());
    object.done()
}

fn copy_action(copy: &CopyAction, inputs: usize, one: &mut Object) {
    one.text("src", &copy.src);
    one.text("dest", &copy.dest);
    owner(copy.owner.as_ref(), inputs, one);
    match &copy.mode {
        CopyMode::Keep => one.number("mode", -1),
        CopyMode::Bits(bits) => one.number("mode", *bits),
        CopyMode::Symbolic(text) => one.text("modeStr", text),
    }
    one.flag("followSymlink", copy.follow_symlink);
    one.flag("dirCopyContents", copy.dir_copy_contents);
    one.flag("attemptUnpackDockerCompatibility", copy.attempt_unpack);
    one.flag("createDestPath", copy.create_dest_path);
    one.flag("allowWildcard", copy.allow_wildcard);
    one.flag("allowEmptyWildcard", copy.allow_empty_wildcard);
    one.long("timestamp", copy.timestamp.unwrap_or(-1));
    one.texts("include_patterns", &copy.include_patterns);
    one.texts("exclude_patterns", &copy.exclude_patterns);
    one.flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths);
    one.texts("required_paths", &copy.required_paths);
}

fn owner(of: Option<&Chown>, inputs: usize, into: &mut Object) {
    let Some(of) = of else { return };
    let who = |who: &UserOrGroup| match who {
        // The number is a member of a oneof, so that even 0 is written.
        UserOrGroup::Id(id) => json!({"byID": id}),
        UserOrGroup::Name { name, input } => {
            let mut one = Object::default();
            one.text("name", name);
            one.long("input", file_input(*input, inputs));
            json!({"byName": one.done()})
        }
    };
    let mut one = Object::default();
    if let Some(user) = &of.user {
        one.put("user", who(user));
    }
    if let Some(group) = &of.group {
        one.put("group", who(group));
    }
    into.put("owner", one.done());
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}
