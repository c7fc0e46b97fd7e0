//! `stave inspect`: everything known about images, in docker's JSON form.

use serde_json::{Value, json};
use stave_oci::{ImageConfig, Platform, Reference};
use stave_store::{LocalImage, Store};

use super::find_platform;
use crate::commands::{Format, fill};
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Show an image's details as JSON
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArguments {
    /// Output form: `json` (the default), or a template such as `{{.Id}}` or `{{json .Config}}`
    #[arg(short, long, value_name = "FORM", default_value = "json")]
    format: Format,
    /// Of images for several platforms, the one to show
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Prints an array with one object an image.
pub(crate) fn inspect(arguments: &InspectArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    if matches!(arguments.format, Format::Table | Format::Columns(_)) {
        return Err(Failure::usage("inspect prints `--format json` and templates only"));
    }
    with_store(global, |store| {
        let images = arguments
            .images
            .iter()
            .map(|text| describe(store, &find_platform(store, text, arguments.platform.as_ref())?));
        let images = images.collect::<Result<Vec<Value>, Failure>>()?;
        if let Format::Lines(template) = &arguments.format {
            fill(template, &images.into_iter().map(with_all_fields).collect::<Vec<_>>(), None)?;
            return Ok(0);
        }
        say!("{}", serde_json::to_string_pretty(&images).map_err(|error| Failure::new(&error))?);
        Ok(0)
    })
}

/// The same with what an image does not say, as docker has it: a template may ask for it.
fn with_all_fields(mut image: Value) -> Value {
    let defaults = json!({
        "User": "", "ExposedPorts": {}, "Env": [], "Entrypoint": [], "Cmd": [], "Volumes": {}, "WorkingDir": "",
        "Labels": {}, "StopSignal": "", "OnBuild": [], "Shell": [], "Healthcheck": null, "ArgsEscaped": false,
    });
    for (name, value) in defaults.as_object().into_iter().flatten() {
        let field = &mut image["Config"][name];
        if field.is_null() {
            *field = value.clone();
        }
    }
    for name in ["Author", "Variant"] {
        if image[name].is_null() {
            image[name] = "".into();
        }
    }
    image
}

fn describe(store: &Store, image: &LocalImage) -> Result<Value, Failure> {
    let config: ImageConfig = serde_json::from_slice(&image.config).map_err(|error| Failure::new(&error))?;
    let names = store.image_names(&image.id).map_err(|error| Failure::new(&error))?;
    let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
    let digest = image.manifest.as_ref().map(|manifest| &manifest.digest);
    let mut digests: Vec<String> = digest
        .iter()
        .flat_map(|digest| names.iter().map(move |n| format!("{}@{digest}", n.familiar_name())))
        .collect();
    digests.dedup();
    let listed = store.images().map_err(|error| Failure::new(&error))?;
    let listed = listed.iter().find(|listed| listed.image.id == image.id);
    Ok(json!({
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config.created,
        "Author": config.author,
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "Size": listed.map(|listed| listed.size),
        "Config": config.config,
        "RootFS": {"Type": "layers", "Layers": config.rootfs.diff_ids},
        "Metadata": {"StoredAt": listed.and_then(|listed| jiff::Timestamp::try_from(listed.stored_at).ok())},
    }))
}
