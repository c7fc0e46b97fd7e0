//! Caches to ask, read before a build. One that cannot be read is said and left out.

use futures::future::join_all;
use stave_remotecache::import::ImportedCache;
use stave_remotecache::place::{Elsewhere, Place, PlaceError, S3Store, local};
use stave_remotecache::spec::ImportSource;

use super::{CacheOwner, Caches};
use crate::Engine;
use crate::event::Steps;

/// Reads caches, all at once, in their order.
pub(super) async fn read(engine: &Engine, caches: &Caches, steps: &Steps) -> Vec<ImportedCache> {
    let reads = caches.from.iter().map(|spec| async move {
        let name = spec.source.to_string();
        let step = steps.start(format!("importing cache manifest from {name}"));
        let read = match place(engine, &spec.source, caches.owner.as_ref()).await {
            Ok(place) => ImportedCache::read(place, name).await,
            Err(error) => Err(error.into()),
        };
        if let Ok(found) = &read {
            step.part(match found {
                Some(cache) => format!("{} records", cache.records()),
                None => "there is no cache yet".to_owned(),
            });
        }
        // The step shows what went wrong; a build does not need another one's cache.
        step.end(read).ok().flatten()
    });
    join_all(reads).await.into_iter().flatten().collect()
}

pub(super) async fn place(
    engine: &Engine,
    source: &ImportSource,
    owner: Option<&CacheOwner>,
) -> Result<Place, PlaceError> {
    Ok(match source {
        ImportSource::Registry(place) => engine.registry_place(place, owner).await,
        ImportSource::Local { src, digest, tag } => match owner {
            Some(owner) => Place::Elsewhere(Elsewhere::new((owner.directories)(src), digest.clone())),
            None => local(src.clone(), tag.clone(), digest.clone()),
        },
        ImportSource::S3(place) => Place::S3(S3Store::new(place.clone())?),
    })
}
