//! What agents answer, and what they are not asked.

use std::process::Command;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::protocol::{FAILURE, SIGN_REQUEST};
use super::*;

/// A key made for this test only.
const KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
             QyNTUxOQAAACD3zUvOKotVxe0B0A5JUjEHyVfR0XM2blIv4VaXUBobgwAAAIgDNd85AzXf\n\
             OQAAAAtzc2gtZWQyNTUxOQAAACD3zUvOKotVxe0B0A5JUjEHyVfR0XM2blIv4VaXUBobgw\n\
             AAAEDg2wqPNkc7wB/WUwDRZ2AnkzU335fJOK9TCgONFjibdffNS84qi1XF7QHQDklSMQfJ\n\
             V9HRczZuUi/hVpdQGhuDAAAABHRlc3QB\n-----END OPENSSH PRIVATE KEY-----\n";

fn keys() -> SshKeys {
    let mut keys = SshKeys::default();
    keys.add(KEY).expect("a key");
    keys
}

#[test]
fn what_is_no_key_is_refused() {
    let error = SshKeys::default().add("-----BEGIN RSA PRIVATE KEY-----\n").expect_err("is none");
    assert!(error.to_string().starts_with("not a private key in OpenSSH's format"), "{error}");
}

#[test]
fn nothing_but_lists_and_signatures() {
    let keys = keys();
    assert_eq!(keys.answer(&[11]).expect("a list")[..5], [12, 0, 0, 0, 1]);
    for request in [&[17][..], &[18], &[19], &[22], &[27], &[SIGN_REQUEST], &[SIGN_REQUEST, 0, 0, 0, 9], &[]]
    {
        assert_eq!(keys.answer(request), None, "{request:?}");
    }
}

#[tokio::test]
async fn a_relay_lets_no_change_through() {
    let (mut client, mut near) = tokio::io::duplex(4096);
    let (mut far, mut agent) = tokio::io::duplex(4096);
    let relaying = tokio::spawn(async move { protocol::relay(&mut near, &mut far).await });
    let serving = tokio::spawn(async move { protocol::serve(&mut agent, &keys()).await });
    let ask = async |client: &mut tokio::io::DuplexStream, request: &[u8]| -> Vec<u8> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let length = u32::try_from(request.len()).expect("short").to_be_bytes();
        client.write_all(&[&length[..], request].concat()).await.expect("sent");
        let length = client.read_u32().await.expect("answered") as usize;
        let mut answer = vec![0; length];
        client.read_exact(&mut answer).await.expect("whole");
        answer
    };
    assert_eq!(ask(&mut client, &[19]).await, [FAILURE], "removing all keys");
    assert_eq!(ask(&mut client, &[11]).await[..5], [12, 0, 0, 0, 1]);
    drop(client);
    relaying.await.expect("ends").expect("ends well");
    serving.await.expect("ends").expect("ends well");
}

/// OpenSSH's own client understands what is served.
#[tokio::test]
async fn openssh_lists_the_keys() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = stave_store::Store::open(folder.path()).expect("store");
    let worker = crate::worker::LocalWorker::with_executor(store, None, ()).expect("worker");
    let agent = SshAgent::Keys(Arc::new(keys()));
    let socket = AgentSocket::open(&agent, SocketOwner::own(), &worker.shared).expect("listens");
    let path = socket.path().to_owned();
    let listed = tokio::task::spawn_blocking(move || {
        Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", path).output()
    });
    let Ok(listed) = listed.await.expect("runs") else { return };
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(text.contains("(ED25519)"), "{text}{}", String::from_utf8_lossy(&listed.stderr));
}

/// What somebody lends who is asked over a connection: everything that is said comes back.
struct Echo;

impl AgentConnector for Echo {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn AgentStream>>> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(1024);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(theirs);
                tokio::io::copy(&mut read, &mut write).await
            });
            Ok(Box::new(ours) as Box<dyn AgentStream>)
        })
    }
}

#[tokio::test]
async fn what_a_client_lends_need_not_be_an_agent() {
    let mut lent = SshAgent::Remote(Arc::new(Echo)).connect().expect("connects");
    lent.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("is taken");
    lent.shutdown().await.expect("is said");
    let mut answer = String::new();
    lent.read_to_string(&mut answer).await.expect("answers");
    assert_eq!(answer, "GET / HTTP/1.0\r\n\r\n");

    let refused = SshAgent::Refused("unset ssh forward key x".to_owned());
    assert_eq!(format!("{refused:?}"), "Refused(\"unset ssh forward key x\")");
    let mut nobody = refused.connect().expect("connects");
    assert_eq!(nobody.read(&mut [0; 8]).await.expect("is closed"), 0);
}
