//! Which time an image carries. Pure: no clock is read, so that equal inputs give equal images.

use jiff::Timestamp;
use stave_oci::ImageConfig;

/// The time of images that nothing else dates: from `scratch`, with no `SOURCE_DATE_EPOCH`.
const FIXED: Timestamp = Timestamp::constant(946_684_800, 0);

/// `SOURCE_DATE_EPOCH` (seconds), else the newest time in the base image's config, else a fixed date.
/// The store's own record tells when an image was built here.
pub(crate) fn created(epoch: Option<i64>, config: &ImageConfig) -> String {
    let given = epoch.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let history = config.history.iter().filter_map(|entry| entry.created.as_deref());
    let known = config.created.as_deref().into_iter().chain(history);
    let newest = known.filter_map(|text| text.parse::<Timestamp>().ok()).max();
    given.or(newest).unwrap_or(FIXED).to_string()
}

#[cfg(test)]
mod tests {
    use stave_oci::History;

    use super::*;

    #[test]
    fn an_image_is_dated_by_its_inputs() {
        let mut config = ImageConfig::default();
        assert_eq!(created(None, &config), "2000-01-01T00:00:00Z");
        assert_eq!(created(Some(1), &config), "1970-01-01T00:00:01Z");
        config.created = Some("2020-05-05T00:00:00Z".to_owned());
        config
            .history
            .push(History { created: Some("2021-05-05T00:00:00Z".to_owned()), ..History::default() });
        assert_eq!(created(None, &config), "2021-05-05T00:00:00Z");
        config.created = Some("nonsense".to_owned());
        assert_eq!(created(None, &config), "2021-05-05T00:00:00Z");
    }
}
