//! A link between two processes that can be broken in every way a network breaks one: one direction or both, by an end,
//! by a reset or by silence.
//!
//! What is broken stays broken; connections made afterwards are whole. Everything is bytes: TLS passes unread.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;

/// How often a silenced direction looks whether its connection is to end.
const LOOK: Duration = Duration::from_millis(20);

/// Direction of bytes, as seen from whoever connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the one who connects.
    There,
    /// To the one who connects.
    Back,
}

/// Listens at one address and passes every connection on to another.
#[derive(Debug)]
pub struct Link {
    connections: Arc<Mutex<Vec<Connection>>>,
    /// Where it listens.
    pub address: SocketAddr,
}

#[derive(Debug)]
struct Connection {
    /// The two ends, of the one who connects and of the one who is called.
    ends: [TcpStream; 2],
    silent: [Arc<AtomicBool>; 2],
}

impl Link {
    /// A link from `address` to `target`.
    ///
    /// # Errors
    /// Where `address` is taken.
    pub fn start(address: SocketAddr, target: SocketAddr) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        let connections = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&connections);
        // The thread ends with the test's process; it holds nothing but the listener.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if let Ok(connection) = Connection::pass_on(near, target) {
                    lock(&all).push(connection);
                }
            }
        });
        Ok(Self {
            connections,
            address,
        })
    }

    /// Nothing passes any more in this direction of the connections there are, and nobody is told.
    pub fn silence(&self, direction: Direction) {
        for connection in lock(&self.connections).iter() {
            connection.silent[direction as usize].store(true, Ordering::Relaxed);
        }
    }

    /// The receiver in this direction sees the end of the connections there are; the other direction goes on.
    pub fn end(&self, direction: Direction) {
        self.silence(direction);
        for connection in lock(&self.connections).iter() {
            let receiver = &connection.ends[1 - direction as usize];
            // One that has ended already is as it should be.
            let _ = receiver.shutdown(Shutdown::Write);
        }
    }

    /// Both ends of the connections there are see a reset.
    pub fn reset(&self) {
        for connection in lock(&self.connections).drain(..) {
            connection.reset();
        }
    }
}

impl Connection {
    fn pass_on(near: TcpStream, target: SocketAddr) -> std::io::Result<Self> {
        let far = TcpStream::connect(target)?;
        let connection = Self {
            ends: [near.try_clone()?, far.try_clone()?],
            silent: Default::default(),
        };
        let [there, back] = connection.silent.clone();
        let (near_writer, far_writer) = (near.try_clone()?, far.try_clone()?);
        thread::spawn(move || copy(near, far_writer, &there));
        thread::spawn(move || copy(far, near_writer, &back));
        Ok(connection)
    }

    fn reset(self) {
        for end in &self.ends {
            // Closing with a linger time of nought sends a reset. Shutting down ends the threads that hold it too.
            let _ = socket2::SockRef::from(end).set_linger(Some(Duration::ZERO));
        }
        for silent in &self.silent {
            silent.store(true, Ordering::Relaxed);
        }
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Read);
        }
    }
}

/// Copies until the end, or until it is silenced: then nothing is read any more, so that the sender's window closes.
fn copy(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool) {
    let _ = from.set_read_timeout(Some(LOOK));
    let mut buffer = [0; 16 * 1024];
    loop {
        if silent.load(Ordering::Relaxed) {
            return;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                // Silenced while it waited for bytes: those do not pass either.
                if silent.load(Ordering::Relaxed) || to.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
