//! Options of sockets.

use std::{collections::HashSet, io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Silence after which the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(4);
/// Between two such questions; two without answer end the connection, 8 s after the peer was last heard.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_COUNT: u32 = 2;
/// How long sent bytes may stay unacknowledged. A peer that vanished is given up within 10 s (FIELD c6), of which the
/// kernel's timers may take one.
const USER_TIMEOUT: Duration = Duration::from_secs(8);
/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes that may wait in the kernel before they are sent. What is under way to the peer is not among them, so that a fast and far one
/// still gets all that it can take; for one that reads slowly, the kernel would keep four times as much. Half of this costs a tenth more
/// for bulk, as writes are then smaller.
const UNSENT_MAX: u32 = 1024 * 1024;
/// What the kernel receives at first before anybody has read it, where nobody has changed it (tcp(7), `tcp_rmem`).
const RECEIVED_AT_FIRST: usize = 128 * 1024;
/// What it goes on to receive, once it has told the peer of more: Linux sends over loopback in pieces of half the largest window
/// that it has seen, and where so much does not fit, one piece in a fifth of a second.
const RECEIVED_LATER_MIN: usize = 64 * 1024;

/// What every connection has, on both hops: no delay of small writes, a peer that vanished is noticed, and one that reads slowly is
/// not written to in vain.
fn set_options(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// From now on the kernel keeps about `bytes` of what is to be sent.
pub fn send_at_most(stream: &TcpStream, bytes: u32) {
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(bytes.min(UNSENT_MAX));
}

/// The same, and about as much of what has come and not been read, instead of as much as it thinks best.
pub fn keep_at_most(stream: &TcpStream, bytes: u32) {
    send_at_most(stream, bytes);
    let socket = SockRef::from(stream);
    let has_grown = !matches!(socket.recv_buffer_size(), Ok(size) if size <= RECEIVED_AT_FIRST);
    let received = match has_grown {
        true => (bytes as usize).max(RECEIVED_LATER_MIN),
        false => bytes as usize,
    };
    let _ = socket.set_recv_buffer_size(received);
}

/// Repetitions without an answer after which packets count as lost for good.
const REPEATED: u32 = 3;

/// A user timeout also kills a peer that is alive and keeps its receive window shut because it reads slowly. Where that
/// may be the case, [`unanswered`] judges instead.
pub fn be_patient(stream: &TcpStream, patient: bool) {
    let timeout = if patient {
        Duration::ZERO
    } else {
        USER_TIMEOUT
    };
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(timeout));
}

/// Connects to `address`, with the options of every connection.
///
/// # Errors
/// Where it is not reached.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    set_options(SockRef::from(&stream))?;
    Ok(stream)
}

/// The number by which the kernel's table of connections knows it.
#[must_use]
pub fn inode(stream: &TcpStream) -> u64 {
    rustix::fs::fstat(stream).map_or(0, |stat| stat.st_ino)
}

/// The connections whose peer answers nothing: what was sent is being repeated, or the question whether its window is
/// open again. A peer that keeps its window shut and says so is none of them.
///
/// # Errors
/// Where the kernel's table can not be read.
pub fn unanswered() -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) => inodes.extend(text.lines().filter_map(unanswered_in)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(inodes)
}

/// The inode in a line of `/proc/net/tcp` (proc_pid_net(5)), where its peer does not answer.
fn unanswered_in(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(5);
    let timer = fields.next()?.split(':').next()?;
    let retransmissions = u32::from_str_radix(fields.next()?, 16).ok()?;
    let mut fields = fields.skip(1);
    let probes: u32 = fields.next()?.parse().ok()?;
    let inode = fields.next()?.parse().ok()?;
    let lost = match timer {
        "01" => retransmissions >= REPEATED,
        "04" => probes >= REPEATED,
        _ => false,
    };
    lost.then_some(inode)
}

/// Binds `count` listeners that share `address` (SO_REUSEPORT), so that each worker has its own. Accepted connections
/// inherit the options. Port 0 is replaced by the one the kernel gives. Where `exclusive`, a port that another process
/// listens on is refused, which SO_REUSEPORT alone would share with it.
///
/// # Errors
/// Where the address can not be had.
pub fn listen(
    address: SocketAddr,
    count: usize,
    exclusive: bool,
) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    if exclusive {
        let probe = socket(address)?;
        probe.bind(&address.into())?;
    }
    let mut bound = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        set_options(SockRef::from(&socket))?;
        socket.bind(&bound.into())?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((bound, listeners))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `::` means IPv6 and IPv4, as everywhere in Isthmus.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

/// What has been accepted and not been taken when a listener goes would be reset: takes it.
pub fn accept_waiting(listener: &TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut waiting = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(Ok(accepted)) = listener.poll_accept(&mut cx) {
        waiting.push(accepted);
    }
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_another_process_is_refused_and_shared_among_our_own() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (bound, listeners) = listen(address.parse().unwrap(), 2, true).unwrap();
            assert_eq!(listeners.len(), 2);
            assert!(
                listeners
                    .iter()
                    .all(|listener| listener.local_addr().unwrap() == bound)
            );
            let refused = listen(bound, 1, true).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            // A listener of our own may move: both are open for a moment.
            listen(bound, 1, false).unwrap();
        }
    }

    #[tokio::test]
    async fn accepted_connections_have_the_options_of_their_listener() {
        let (bound, mut listeners) = listen("127.0.0.1:0".parse().unwrap(), 1, true).unwrap();
        let listener = listeners.pop().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (called, accepted) = tokio::join!(connect(bound), listener.accept());
        for stream in [called.unwrap(), accepted.unwrap().0] {
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_MAX);
            be_patient(&stream, true);
            assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), None);
        }
    }

    #[test]
    fn who_does_not_answer_is_seen_in_the_kernels_table() {
        let line = |timer, retransmissions, probes| {
            format!(
                "  12: 0100007F:1F90 0200007F:A3C4 01 00012400:00000000 {timer}:00000123 {retransmissions:08X} 1000 {probes} 4711 2 0000000000000000 20 4 30 10 -1"
            )
        };
        assert_eq!(unanswered_in(&line("01", 3, 0)), Some(4711));
        assert_eq!(unanswered_in(&line("04", 0, 12)), Some(4711));
        // Just sent; a window that is shut, and answers; nothing under way.
        for alive in [
            line("01", 1, 0),
            line("04", 0, 1),
            line("00", 0, 0),
            line("02", 9, 9),
        ] {
            assert_eq!(unanswered_in(&alive), None, "{alive}");
        }
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(unanswered_in(header), None);
    }

    #[tokio::test]
    async fn the_kernels_table_has_our_connections() {
        let (bound, mut listeners) = listen("127.0.0.1:0".parse().unwrap(), 1, true).unwrap();
        let listener = TcpListener::from_std(listeners.pop().unwrap()).unwrap();
        let (called, _accepted) = tokio::join!(connect(bound), listener.accept());
        let called = called.unwrap();
        let inode = inode(&called);
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let known = |line: &str| line.split_ascii_whitespace().nth(9) == Some(&inode.to_string());
        assert!(table.lines().any(known), "{inode}: {table}");
        assert!(!unanswered().unwrap().contains(&inode));
    }

    #[tokio::test]
    async fn what_the_kernel_has_accepted_is_taken_when_a_listener_goes() {
        let (bound, mut listeners) = listen("127.0.0.1:0".parse().unwrap(), 1, true).unwrap();
        let listener = TcpListener::from_std(listeners.pop().unwrap()).unwrap();
        let first = connect(bound).await.unwrap();
        let second = connect(bound).await.unwrap();
        // The runtime learns of them when it looks at the socket.
        let (taken, _) = listener.accept().await.unwrap();
        assert_eq!(accept_waiting(&listener).len(), 1);
        drop((first, second, taken));
    }
}
