//! The agent protocol (draft-ietf-sshm-ssh-agent): length-prefixed messages, of which a build may send two.
//! Must not know where an agent is. Read [`relay`] first.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::keys::SshKeys;

/// Bytes of one message, as OpenSSH limits them.
const MESSAGE_LIMIT: usize = 256 << 10;

/// "Not done".
pub(super) const FAILURE: u8 = 5;
/// Which keys are there?
pub(super) const REQUEST_IDENTITIES: u8 = 11;
/// These are.
pub(super) const IDENTITIES_ANSWER: u8 = 12;
/// Sign this.
pub(super) const SIGN_REQUEST: u8 = 13;
/// Signed.
pub(super) const SIGN_RESPONSE: u8 = 14;

/// Passes on what may be asked, and answers; everything else is refused here: keys are neither added, removed nor
/// locked by a build.
pub(super) async fn relay<A, B>(client: &mut A, agent: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(request) = receive(client).await? {
        if !may_pass(&request) {
            send(client, &[FAILURE]).await?;
            continue;
        }
        send(agent, &request).await?;
        let Some(answer) = receive(agent).await? else { return Ok(()) };
        send(client, &answer).await?;
    }
    Ok(())
}

/// Answers with keys of our own.
pub(super) async fn serve<A: AsyncRead + AsyncWrite + Unpin>(
    client: &mut A,
    keys: &SshKeys,
) -> io::Result<()> {
    while let Some(request) = receive(client).await? {
        let answer = keys.answer(&request).unwrap_or_else(|| vec![FAILURE]);
        send(client, &answer).await?;
    }
    Ok(())
}

fn may_pass(request: &[u8]) -> bool {
    matches!(request.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)))
}

async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_be_bytes(length) as usize;
    if length == 0 || length > MESSAGE_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of the agent protocol is too long",
        ));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn send(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    to.write_all(&framed).await
}
