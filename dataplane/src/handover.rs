//! An upgrade without a gap: the successor gets the listening sockets themselves, so that not one connection that waits in them is
//! lost, and the predecessor ends with what it has.
//!
//! 1. The successor (`run --take-over`, or started by SIGHUP) calls a socket beside the predecessor's admin socket.
//! 2. The predecessor keeps its state on disk, leaves its zone without a word (so that nobody hears that the workload goes), lets go
//!    of its directory and its addresses, sends the listeners (SCM_RIGHTS), accepts no more, and drains.
//! 3. The successor starts from disk on those listeners. What it has no use for it closes.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors in one message; the kernel takes 253.
const BATCH: usize = 64;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Enough for the addresses of a batch.
const TEXT_BYTES: usize = 16 * 1024;

/// A listener, and the address in the documents that it is for.
pub type Handed = (SocketAddr, TcpListener);

/// Where a process is asked to hand over.
#[must_use]
pub fn socket_path(admin_socket: &Path) -> PathBuf {
    admin_socket.with_extension("handover")
}

/// Takes over from the process whose admin socket is at `admin_socket`. `None`: there is none.
///
/// # Errors
/// Where it does not hand over.
pub fn take_over(admin_socket: &Path) -> io::Result<Option<Vec<Handed>>> {
    let mut stream = match UnixStream::connect(socket_path(admin_socket)) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut handed = Vec::new();
    loop {
        let batch = receive(&stream)?;
        if batch.is_empty() {
            return Ok(Some(handed));
        }
        handed.extend(batch);
        // One batch at a time, so that none runs into the next.
        stream.write_all(b"+")?;
    }
}

/// Hands `listeners` over to whoever has called.
///
/// # Errors
/// Where it has gone.
pub fn hand_over(mut stream: UnixStream, listeners: &[Handed]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    for batch in listeners.chunks(BATCH) {
        send(&stream, batch)?;
        stream.read_exact(&mut [0])?;
    }
    send(&stream, &[])
}

fn send(stream: &UnixStream, batch: &[Handed]) -> io::Result<()> {
    let addresses: Vec<SocketAddr> = batch.iter().map(|(address, _)| *address).collect();
    let text = serde_json::to_vec(&addresses)?;
    let descriptors: Vec<BorrowedFd<'_>> =
        batch.iter().map(|(_, listener)| listener.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(fits, "there is room for a batch");
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&text)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == text.len() {
        Ok(())
    } else {
        Err(io::Error::other("a message was cut short"))
    }
}

fn receive(stream: &UnixStream) -> io::Result<Vec<Handed>> {
    let mut text = vec![0; TEXT_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let addresses: Vec<SocketAddr> = serde_json::from_slice(&text[..received.bytes])?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if descriptors.len() != addresses.len() {
        return Err(io::Error::other(
            "as many sockets as addresses are expected",
        ));
    }
    let listeners = descriptors.into_iter().map(TcpListener::from);
    Ok(addresses.into_iter().zip(listeners).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn listeners_go_from_one_process_to_the_other_with_what_waits_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let admin = dir.path().join("admin.sock");
        assert!(take_over(&admin).unwrap().is_none(), "nobody is there");
        let called = UnixListener::bind(socket_path(&admin)).unwrap();
        let listeners: Vec<Handed> = (0..100)
            .map(|_| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                (listener.local_addr().unwrap(), listener)
            })
            .collect();
        let first = listeners[0].0;
        let waiting = std::net::TcpStream::connect(first).unwrap();
        let handing = std::thread::spawn(move || {
            let (stream, _) = called.accept().unwrap();
            hand_over(stream, &listeners).unwrap();
        });
        let taken = take_over(&admin).unwrap().unwrap();
        handing.join().unwrap();
        assert_eq!(taken.len(), 100);
        for (address, listener) in &taken {
            assert_eq!(listener.local_addr().unwrap(), *address);
        }
        let (accepted, _) = taken[0].1.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
    }
}
