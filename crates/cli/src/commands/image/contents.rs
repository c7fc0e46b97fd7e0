//! `stave image layers|files|waste|diff`: which instruction made each byte, which bytes are for nothing,
//! and what two images differ in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stave_exporter::contents::{
    self as list, Difference, FileKind, LayerContents, Placed, merged, same_content,
};
use stave_oci::{ImageConfig, Platform};
use stave_store::{LocalImage, Store, StoreError};

use super::find_platform;
use crate::format;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Characters of an instruction that a table shows.
const CREATED_BY: usize = 60;

/// An image and how to show it.
#[derive(Debug, clap::Args)]
pub(crate) struct ContentsArguments {
    /// Of an image for several platforms, the one to look at
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
    /// Name or id
    image: String,
}

/// Two images and how to show them.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArguments {
    /// Of images for several platforms, the one to look at
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Exit with 1 if the images differ
    #[arg(long)]
    exit_code: bool,
    /// Do not compare modification times
    #[arg(long)]
    ignore_times: bool,
    /// Name or id
    first: String,
    /// Name or id
    second: String,
}

/// An image with all that is known of its layers.
struct Known {
    image: LocalImage,
    config: ImageConfig,
    layers: Vec<LayerContents>,
}

impl Known {
    fn of(store: &Store, text: &str, platform: Option<&Platform>) -> Result<Self, Failure> {
        let image = find_platform(store, text, platform)?;
        let config = serde_json::from_slice(&image.config).map_err(|error| Failure::new(&error))?;
        let layers = image.layers.iter().map(|layer| LayerContents::of(store, layer.layer, false));
        let layers = layers.collect::<Result<_, _>>().map_err(|error| Failure::new(&error))?;
        Ok(Self { image, config, layers })
    }

    /// The instruction that made a layer.
    fn created_by(&self, layer: usize) -> &str {
        let mut lines = self.config.history.iter().filter(|line| !line.empty_layer);
        let line = lines.nth(layer);
        line.map_or("", |line| if line.created_by.is_empty() { &line.comment } else { &line.created_by })
    }

    fn shown_by(&self, layer: usize, full: bool) -> String {
        let text = self.created_by(layer).replace(['\t', '\n'], " ");
        if full { text } else { format::clip(&text, CREATED_BY) }
    }
}

/// `stave image layers`
pub(crate) fn layers(arguments: &ContentsArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let known = Known::of(store, &arguments.image, arguments.platform.as_ref())?;
        let mut hidden = vec![0; known.layers.len()];
        for wasted in list::waste(&known.layers) {
            hidden[wasted.layer] += wasted.size;
        }
        let mut rows = Vec::new();
        for (index, (layer, stored)) in known.layers.iter().zip(&known.image.layers).enumerate() {
            let files = layer.entries.values().filter(|facts| facts.kind == FileKind::File).count();
            let removed = layer.whiteouts.len() + layer.opaque.len();
            if arguments.json {
                let blob = stored.blob.as_ref();
                say!(
                    "{}",
                    json!({
                        "Layer": index, "DiffID": stored.diff_id, "SizeBytes": layer.size(), "Files": files,
                        "Removes": removed, "WastedBytes": hidden[index],
                        "Blob": blob.map(|blob| &blob.digest), "BlobBytes": blob.map(|blob| blob.size),
                        "CreatedBy": known.created_by(index),
                    })
                );
            }
            rows.push(vec![
                index.to_string(),
                stored.diff_id.short().to_owned(),
                format::size(layer.size()),
                files.to_string(),
                format::size(hidden[index]),
                known.shown_by(index, arguments.no_trunc),
            ]);
        }
        if !arguments.json {
            let header = ["LAYER", "DIFF ID", "SIZE", "FILES", "WASTED", "CREATED BY"];
            say!("{}", format::table(&header, &rows));
        }
        Ok(0)
    })
}

/// `stave image files`
pub(crate) fn files(arguments: &ContentsArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let known = Known::of(store, &arguments.image, arguments.platform.as_ref())?;
        let mut rows = Vec::new();
        for (path, placed) in merged(&known.layers) {
            let path = shown(&path);
            let facts = &placed.facts;
            if arguments.json {
                say!(
                    "{}",
                    json!({
                        "Path": path, "Type": kind(facts.kind), "SizeBytes": facts.size,
                        "Mode": format!("{:04o}", facts.mode), "Uid": facts.owner.0, "Gid": facts.owner.1,
                        "Mtime": facts.mtime, "Target": facts.target, "Layer": placed.layer,
                        "CreatedBy": known.created_by(placed.layer),
                    })
                );
                continue;
            }
            rows.push(vec![
                placed.layer.to_string(),
                format!("{:04o}", facts.mode),
                format!("{}:{}", facts.owner.0, facts.owner.1),
                format::size(facts.size),
                match &facts.target {
                    Some(target) => format!("{path} -> {}", target.display()),
                    None => path,
                },
            ]);
        }
        if !arguments.json {
            say!("{}", format::table(&["LAYER", "MODE", "OWNER", "SIZE", "PATH"], &rows));
        }
        Ok(0)
    })
}

/// `stave image waste`
pub(crate) fn waste(arguments: &ContentsArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let known = Known::of(store, &arguments.image, arguments.platform.as_ref())?;
        let found = list::waste(&known.layers);
        let total: u64 = found.iter().map(|wasted| wasted.size).sum();
        if arguments.json {
            for wasted in &found {
                let how = if wasted.is_replaced { "replaced" } else { "removed" };
                say!(
                    "{}",
                    json!({
                        "Path": shown(&wasted.path), "SizeBytes": wasted.size, "Layer": wasted.layer,
                        "CreatedBy": known.created_by(wasted.layer), "How": how,
                        "HiddenByLayer": wasted.hidden_by, "HiddenBy": known.created_by(wasted.hidden_by),
                    })
                );
            }
            return Ok(0);
        }
        let row = |wasted: &list::Wasted| {
            let how = if wasted.is_replaced { "replaced by" } else { "removed by" };
            vec![
                format::size(wasted.size),
                shown(&wasted.path),
                wasted.layer.to_string(),
                format!(
                    "{how} {}: {}",
                    wasted.hidden_by,
                    known.shown_by(wasted.hidden_by, arguments.no_trunc)
                ),
            ]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        say!("{}", format::table(&["SIZE", "PATH", "LAYER", "HIDDEN"], &rows));
        let whole: u64 = known.layers.iter().map(LayerContents::size).sum();
        say!("Wasted:\t{} of {}", format::size(total), format::size(whole));
        Ok(0)
    })
}

/// `stave image diff`
pub(crate) fn diff(arguments: &DiffArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let platform = arguments.platform.as_ref();
        let first = Known::of(store, &arguments.first, platform)?;
        let second = Known::of(store, &arguments.second, platform)?;
        let config = config_changes(&first.config, &second.config)?;
        let files = file_changes(store, &first, &second, arguments.ignore_times)
            .map_err(|error| Failure::new(&error))?;
        for (path, before, after) in &config {
            if arguments.json {
                say!("{}", json!({"Config": path, "Before": before, "After": after}));
            } else {
                // `config.` is the config's part that containers get: nearly all of it.
                let path = path.strip_prefix("config.").unwrap_or(path);
                let path = format::one_line(path);
                say!("config {path}: {} -> {}", text(before.as_ref()), text(after.as_ref()));
            }
        }
        for change in &files {
            if arguments.json {
                say!("{}", change.object(&second));
            } else {
                say!("{change}");
            }
        }
        Ok(u8::from(arguments.exit_code && !(config.is_empty() && files.is_empty())))
    })
}

/// What happened to one path.
struct Change {
    path: PathBuf,
    before: Option<Placed>,
    after: Option<Placed>,
    how: Vec<Difference>,
}

impl Change {
    fn letter(&self) -> char {
        match (&self.before, &self.after) {
            (None, _) => 'A',
            (_, None) => 'D',
            _ => 'C',
        }
    }

    fn names(&self) -> Vec<String> {
        self.how.iter().map(ToString::to_string).collect()
    }

    fn object(&self, second: &Known) -> Value {
        let size = |placed: &Option<Placed>| placed.as_ref().map(|placed| placed.facts.size);
        json!({
            "Path": shown(&self.path), "Kind": self.letter().to_string(), "Differs": self.names(),
            "SizeBefore": size(&self.before), "SizeAfter": size(&self.after),
            "CreatedBy": self.after.as_ref().map(|placed| second.created_by(placed.layer)),
        })
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.letter(), shown(&self.path))?;
        if self.how.is_empty() { Ok(()) } else { write!(f, " ({})", self.names().join(", ")) }
    }
}

fn file_changes(
    store: &Store,
    first: &Known,
    second: &Known,
    ignore_times: bool,
) -> Result<Vec<Change>, StoreError> {
    let (mut before, mut after) = (merged(&first.layers), merged(&second.layers));
    let views = (store.view(&first.image.snapshot())?, store.view(&second.image.snapshot())?);
    let paths: BTreeSet<PathBuf> = before.keys().chain(after.keys()).cloned().collect();
    let layer = |known: &Known, placed: &Placed| known.image.layers[placed.layer].layer;
    let mut changes = Vec::new();
    for path in paths {
        let (old, new) = (before.remove(&path), after.remove(&path));
        let how = match (&old, &new) {
            (Some(old), Some(new)) if layer(first, old) == layer(second, new) => continue,
            (Some(old), Some(new)) => {
                let mut how = old.facts.differs(&new.facts, ignore_times.then_some(i64::MIN));
                let is_file = old.facts.kind == FileKind::File && new.facts.kind == FileKind::File;
                if is_file && !how.contains(&Difference::Content) && !same_content(&views.0, &views.1, &path)?
                {
                    how.insert(0, Difference::Content);
                }
                if how.is_empty() {
                    continue;
                }
                how
            }
            _ => Vec::new(),
        };
        changes.push(Change { path, before: old, after: new, how });
    }
    Ok(changes)
}

type ConfigChange = (String, Option<Value>, Option<Value>);

/// The leaves of two configs that differ; layers and history are shown as files.
fn config_changes(first: &ImageConfig, second: &ImageConfig) -> Result<Vec<ConfigChange>, Failure> {
    let leaves = |config: &ImageConfig| {
        let mut value = serde_json::to_value(config).map_err(|error| Failure::new(&error))?;
        if let Some(object) = value.as_object_mut() {
            object.remove("rootfs");
            object.remove("history");
        }
        let mut found = BTreeMap::new();
        flatten(String::new(), &value, &mut found);
        Ok::<_, Failure>(found)
    };
    let (mut before, mut after) = (leaves(first)?, leaves(second)?);
    let paths: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    let pairs = paths.into_iter().map(|path| {
        let (before, after) = (before.remove(&path), after.remove(&path));
        (path, before, after)
    });
    Ok(pairs.filter(|(_, before, after)| before != after).collect())
}

fn flatten(path: String, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(path, value, found);
            }
        }
        // An environment is a list to JSON and a map to people.
        Value::Array(items) if path.ends_with("config.Env") => {
            for item in items {
                let text = item.as_str().unwrap_or_default();
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                found.insert(format!("{path}.{name}"), json!(value));
            }
        }
        other => drop(found.insert(path, other.clone())),
    }
}

fn text(value: Option<&Value>) -> String {
    value.map_or_else(|| "(none)".to_owned(), |value| format::one_line(&value.to_string()))
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Special => "special",
    }
}

/// A path of an image from its root. Names come from images: control characters stay off terminals.
fn shown(path: &Path) -> String {
    let text = Path::new("/").join(path).display().to_string();
    text.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}

#[cfg(test)]
mod tests {
    use stave_oci::ContainerConfig;

    use super::*;

    #[test]
    fn configs_differ_leaf_by_leaf() {
        let config = |env: &[&str], user: &str| ImageConfig {
            architecture: "amd64".to_owned(),
            config: ContainerConfig {
                env: env.iter().map(|text| (*text).to_owned()).collect(),
                user: user.to_owned(),
                ..ContainerConfig::default()
            },
            ..ImageConfig::default()
        };
        let (first, second) = (config(&["A=1", "B=2"], ""), config(&["B=3", "A=1"], "me"));
        let found = config_changes(&first, &second).map_err(|failure| failure.message).expect("compares");
        let expected = [
            ("config.Env.B".to_owned(), Some(json!("2")), Some(json!("3"))),
            ("config.User".to_owned(), None, Some(json!("me"))),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn names_of_files_cannot_move_the_cursor() {
        assert_eq!(shown(Path::new("a\u{1b}[31m")), "/a\\u{1b}[31m");
    }
}
