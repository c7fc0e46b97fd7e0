//! Being let in, and what is shown to whom.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use stave_oci::{Descriptor, Platform, media_type};
use stave_registry::{BlobContent, Client, Credential, ErrorKind, Keychain, Secret, StoredIn};
use stave_test_support::TestRegistry;
use stave_test_support::registry::{Auth, Misbehaviour, User};

use crate::config;

/// A config file in a directory that lasts as long as the value.
struct Home(tempfile::TempDir);

impl Home {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("config.json"), text).expect("there is room");
        Self(directory)
    }

    fn with_user(registry: &TestRegistry, user: &str) -> Self {
        Self::new(&format!(
            "{{\"auths\":{{{:?}:{{\"auth\":{:?}}}}}}}",
            registry.host(),
            STANDARD.encode(user)
        ))
    }

    fn client(&self) -> Client {
        let keychain = Keychain::at(self.0.path().join("config.json"));
        Client::new(config("", keychain)).expect("the tables are valid")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.0.path().join("config.json")).expect("the file is there")
    }
}

fn user() -> User {
    User::new("me", "pa:ss")
}

fn bearer(anonymous_pull: bool) -> TestRegistry {
    let registry = TestRegistry::with_auth(Auth::Bearer { user: user(), anonymous_pull });
    registry.put_image("app", "1", b"{}", &[b"layer"]);
    registry
}

fn basic(text: &str) -> String {
    format!("Basic {}", STANDARD.encode(text))
}

async fn resolve(client: &Client, registry: &TestRegistry) -> Result<(), stave_registry::RegistryError> {
    let platform = Platform::new("linux", "amd64", None);
    client.resolve(&registry.reference("app:1"), &platform).await.map(drop)
}

#[tokio::test]
async fn public_images_need_an_anonymous_token() {
    let registry = bearer(true);
    let home = Home::new("{}");
    let client = home.client();
    resolve(&client, &registry).await.expect("everybody may read");
    resolve(&client, &registry).await.expect("everybody may read");
    assert_eq!(registry.count("GET", "/token"), 1, "one token serves all requests of a scope");
    let asked = &registry.requests()[1].path;
    assert_eq!(asked, "/token?service=test&scope=repository%3Aapp%3Apull");
}

#[tokio::test]
async fn credentials_go_to_the_token_service_only() {
    let registry = bearer(false);
    let home = Home::with_user(&registry, "me:pa:ss");
    let client = home.client();
    resolve(&client, &registry).await.expect("the user may read");
    let (layer, bytes) = (Descriptor::of(media_type::OCI_LAYER, b"new"), Bytes::from_static(b"new"));
    client
        .push_blob(&registry.reference("app:1"), &layer, BlobContent::new(bytes), Some("base"))
        .await
        .expect("the user may write");
    for request in registry.requests() {
        let shown = request.authorization.as_deref();
        match request.path.starts_with("/token") {
            true => assert_eq!(shown, Some(basic("me:pa:ss").as_str())),
            false => assert!(shown.is_none_or(|shown| shown.starts_with("Bearer token-")), "{request:?}"),
        }
    }
    assert_eq!(
        registry.count("GET", "scope=repository%3Aapp%3Apull%2Cpush&scope=repository%3Abase%3Apull"),
        1
    );
}

#[tokio::test]
async fn a_token_that_expires_is_renewed_once() {
    let registry = bearer(true);
    let client = Home::new("{}").client();
    resolve(&client, &registry).await.expect("everybody may read");
    registry.revoke_tokens();
    resolve(&client, &registry).await.expect("a new token is fetched");
    assert_eq!(registry.count("GET", "/token"), 2);
}

#[tokio::test]
async fn a_token_that_expires_during_a_push_is_renewed() {
    let registry = bearer(false);
    let home = Home::with_user(&registry, "me:pa:ss");
    let bytes = Bytes::from(crate::noise(400_000));
    let layer = Descriptor::of(media_type::OCI_LAYER, &bytes);
    registry.script("PUT", "/uploads/", Misbehaviour::ExpireTokens);
    let name = registry.reference("app:1");
    home.client()
        .push_blob(&name, &layer, BlobContent::new(bytes.clone()), None)
        .await
        .expect("a new token is fetched");
    assert_eq!(registry.blob("app", &layer.digest).as_deref(), Some(&bytes[..]));
    assert_eq!((registry.count("PUT", ""), registry.count("GET", "/token")), (2, 2));
}

#[tokio::test]
async fn many_requests_share_one_token() {
    let registry = bearer(true);
    let client = Home::new("{}").client();
    resolve(&client, &registry).await.expect("everybody may read");
    registry.revoke_tokens();
    let fetches = (0..16).map(|_| resolve(&client, &registry));
    for result in futures::future::join_all(fetches).await {
        result.expect("everybody may read");
    }
    assert_eq!(registry.count("GET", "/token"), 2);
}

#[tokio::test]
async fn a_registry_that_always_says_401_is_left() {
    let registry = bearer(true);
    let client = Home::new("{}").client();
    resolve(&client, &registry).await.expect("everybody may read");
    let before = registry.requests().len();
    for _ in 0..50 {
        registry.script("GET", "/manifests/", Misbehaviour::Status(401, None, String::new()));
    }
    let error = resolve(&client, &registry).await.expect_err("nothing is let in");
    assert!(error.is_access_denied(), "{error:?}");
    assert_eq!(registry.requests().len() - before, 1, "without a challenge there is nothing to try");
}

#[tokio::test]
async fn other_schemes_are_named() {
    let registry = TestRegistry::start();
    let negotiate = Misbehaviour::Header("WWW-Authenticate", "Negotiate".to_owned());
    registry.script("GET", "/manifests/", negotiate);
    let error = resolve(&Home::new("{}").client(), &registry).await.expect_err("it is not there either");
    assert!(error.is_not_found(), "the header alone asks for nothing");
    let registry = TestRegistry::with_auth(Auth::Basic(user()));
    registry.script("GET", "/manifests/", Misbehaviour::Header("WWW-Authenticate", "Negotiate x".to_owned()));
    let error = resolve(&Home::new("{}").client(), &registry).await.expect_err("the scheme is not spoken");
    let text = "registry asks for authentication in a way that is not supported: Negotiate";
    assert!(error.to_string().ends_with(text), "{error}");
}

#[tokio::test]
async fn tokens_are_not_fetched_in_the_clear_for_a_registry_on_https() {
    let registry = crate::tls::start(false);
    let challenge = "Bearer realm=\"http://127.0.0.1:9/token\"".to_owned();
    let home = Home::with_user(&registry, "me:pa:ss");
    let tables = format!("[registry.{:?}]\n{}", registry.host(), crate::tls::trusting());
    let keychain = Keychain::at(home.0.path().join("config.json"));
    let client = Client::new(config(&tables, keychain)).expect("the tables are valid");
    registry.refuse_with(&challenge);
    let error = resolve(&client, &registry).await.expect_err("the service is not on https");
    let text =
        "refusing to send credentials to the token service `http://127.0.0.1:9/token`: it is not on https";
    assert!(error.to_string().ends_with(text), "{error}");
}

#[tokio::test]
async fn a_challenge_loop_is_left_with_access_denied() {
    let registry = bearer(false);
    let name = registry.reference("app:1");
    let error = resolve(&Home::new("{}").client(), &registry).await.expect_err("strangers may not read");
    assert!(error.is_access_denied());
    assert!(matches!(*error.kind, ErrorKind::AccessDenied { authenticated: false, .. }), "{error:?}");
    let start = format!(
        "pull access denied for {}/app: repository does not exist or may require authorization",
        name.registry()
    );
    assert!(error.to_string().starts_with(&start), "{error}");
    assert_eq!(registry.requests().len(), 3, "asked, got a token, asked again");
}

#[tokio::test]
async fn pushing_without_the_right_is_denied() {
    let registry = bearer(true);
    let layer = Descriptor::of(media_type::OCI_LAYER, b"new");
    let content = BlobContent::new(Bytes::from_static(b"new"));
    let client = Home::new("{}").client();
    let error = client.push_blob(&registry.reference("app:1"), &layer, content, None).await;
    let text = error.expect_err("strangers may not write").to_string();
    assert!(text.starts_with("push access denied for "), "{text}");
}

#[tokio::test]
async fn wrong_passwords_are_named_and_not_shown() {
    let registry = bearer(true);
    let home = Home::with_user(&registry, "me:hunter2");
    let error = resolve(&home.client(), &registry).await.expect_err("the password is wrong");
    assert!(matches!(*error.kind, ErrorKind::Unauthorized(_)), "{error:?}");
    for text in [error.to_string(), format!("{error:?}"), format!("{:?}", home.client())] {
        assert!(!text.contains("hunter2") && !text.contains(&STANDARD.encode("me:hunter2")), "{text}");
    }
    let shown =
        format!("{:?}", Credential::Basic { username: "me".into(), password: Secret::new("hunter2") });
    assert_eq!(shown, "Basic { username: \"me\", password: *** }");
}

#[tokio::test]
async fn basic_auth_is_shown_when_asked_for() {
    let registry = TestRegistry::with_auth(Auth::Basic(user()));
    registry.put_image("app", "1", b"{}", &[]);
    let home = Home::with_user(&registry, "me:pa:ss");
    resolve(&home.client(), &registry).await.expect("the user may read");
    let shown: Vec<Option<String>> =
        registry.requests().into_iter().map(|request| request.authorization).collect();
    assert_eq!(shown[0], None, "nothing is shown to who has not asked");
    assert!(shown[1..].iter().all(|shown| shown.as_deref() == Some(&basic("me:pa:ss"))), "{shown:?}");
    let stranger = resolve(&Home::new("{}").client(), &registry).await.expect_err("strangers may not read");
    assert!(stranger.is_access_denied());
    let wrong = Home::with_user(&registry, "me:wrong");
    let before = registry.requests().len();
    let error = resolve(&wrong.client(), &registry).await.expect_err("the password is wrong");
    assert!(matches!(*error.kind, ErrorKind::AccessDenied { authenticated: true, .. }), "{error:?}");
    assert_eq!(registry.requests().len() - before, 2);
}

#[tokio::test]
async fn identity_and_registry_tokens_are_used() {
    let registry = bearer(false);
    let entry = |text: &str| Home::new(&format!("{{\"auths\":{{{:?}:{{{text}}}}}}}", registry.host()));
    let identity = entry("\"identitytoken\":\"identity-of-me\"");
    resolve(&identity.client(), &registry).await.expect("the token is exchanged");
    assert_eq!((registry.count("POST", "/token"), registry.count("GET", "/token")), (1, 0));
    let token = registry.requests().into_iter().rev().find_map(|request| request.authorization);
    let token = token.expect("a token was shown").replace("Bearer ", "");
    let direct = entry(&format!("\"registrytoken\":{token:?}"));
    resolve(&direct.client(), &registry).await.expect("the token is shown as it is");
    assert_eq!(registry.count("POST", "/token"), 1);
}

#[tokio::test]
async fn authorization_does_not_follow_redirects() {
    let registry = TestRegistry::with_auth(Auth::Basic(user()));
    let elsewhere = TestRegistry::start();
    let blob = Descriptor::of(media_type::OCI_LAYER, b"content");
    for host in [&registry, &elsewhere] {
        host.put_blob("app", b"content");
    }
    let home = Home::with_user(&registry, "me:pa:ss");
    let client = home.client();
    let name = registry.reference("app:1");
    client.fetch_small_blob(&name, &blob).await.expect("the user may read");
    let target = format!("http://{}/v2/app/blobs/{}", elsewhere.host(), blob.digest);
    registry.script("GET", "/blobs/", Misbehaviour::Redirect(target));
    client.fetch_small_blob(&name, &blob).await.expect("it is elsewhere");
    assert_eq!(
        registry.requests().last().and_then(|last| last.authorization.clone()),
        Some(basic("me:pa:ss"))
    );
    assert_eq!(elsewhere.requests().len(), 1);
    assert_eq!(elsewhere.requests()[0].authorization, None);
}

#[tokio::test]
async fn a_stranger_behind_a_redirect_gets_no_credentials_by_asking() {
    let registry = TestRegistry::with_auth(Auth::Basic(user()));
    let elsewhere = TestRegistry::with_auth(Auth::Basic(user()));
    let blob = Descriptor::of(media_type::OCI_LAYER, b"content");
    registry.put_blob("app", b"content");
    let home = Home::with_user(&registry, "me:pa:ss");
    let client = home.client();
    let target = format!("http://{}/v2/app/blobs/{}", elsewhere.host(), blob.digest);
    let name = registry.reference("app:1");
    client.fetch_small_blob(&name, &blob).await.expect("the user may read");
    registry.script("GET", "/blobs/", Misbehaviour::Redirect(target));
    let error = client.fetch_small_blob(&name, &blob).await.expect_err("the stranger wants credentials");
    assert!(error.is_access_denied(), "{error:?}");
    assert!(elsewhere.requests().iter().all(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn login_verifies_before_it_stores() {
    for auth in [Auth::Basic(user()), Auth::Bearer { user: user(), anonymous_pull: true }] {
        let registry = TestRegistry::with_auth(auth);
        let home = Home::new("{\"auths\":{\"other.example\":{\"auth\":\"eDp5\"}},\"psFormat\":\"x\"}");
        let client = home.client();
        let with =
            |password: &str| Credential::Basic { username: "me".into(), password: Secret::new(password) };
        let error = client.login(&registry.host(), &with("wrong")).await.expect_err("the password is wrong");
        assert!(matches!(*error.kind, ErrorKind::Unauthorized(_)), "{error:?}");
        assert!(!home.text().contains(&registry.host()));

        let stored = client.login(&registry.host(), &with("pa:ss")).await.expect("the password is right");
        assert_eq!(stored, StoredIn::File(home.0.path().join("config.json")));
        let text: serde_json::Value = serde_json::from_str(&home.text()).expect("it is JSON");
        assert_eq!(text["auths"][registry.host()]["auth"], STANDARD.encode("me:pa:ss"));
        assert_eq!(
            (&text["psFormat"], &text["auths"]["other.example"]["auth"]),
            (&"x".into(), &"eDp5".into())
        );

        assert!(client.logout(&registry.host()).await.expect("the file can be written"));
        assert!(!client.logout(&registry.host()).await.expect("the file can be read"));
        assert!(!home.text().contains(&registry.host()) && home.text().contains("other.example"));
    }
}
