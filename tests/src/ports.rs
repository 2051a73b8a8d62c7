//! Ports that no other process on this machine takes meanwhile.
//!
//! A port that the system chooses can not be told to others before the process listens, nor kept over a restart. So
//! each test takes numbers below the ephemeral range and locks one file for each, for as long as it runs: test binaries
//! that run side by side never meet. A number is taken for every loopback address at once.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    path::PathBuf,
    sync::Mutex,
};

use anyhow::Context as _;

/// Below the ephemeral range (Linux: 32768 and up), so that no outgoing connection has one of them.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// The ports of one test, free again when this is dropped.
#[derive(Debug)]
pub struct Ports {
    directory: PathBuf,
    taken: Mutex<(u16, Vec<File>)>,
}

impl Ports {
    /// Nothing is taken yet.
    ///
    /// # Errors
    /// Where the folder for the locks can not be made.
    pub fn new() -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join("isthmus-test-ports");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        // Different processes begin at different places, which only saves attempts.
        let span = u32::from(RANGE.end - RANGE.start);
        let offset = std::process::id().wrapping_mul(251) % span;
        let first = RANGE.start + u16::try_from(offset).unwrap_or(0);
        Ok(Self {
            directory,
            taken: Mutex::new((first, Vec::new())),
        })
    }

    /// A port that nobody listens on, and that is this test's from now on.
    ///
    /// # Errors
    /// Where none is left.
    pub fn take(&self) -> anyhow::Result<u16> {
        let mut taken = self
            .taken
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for _ in RANGE {
            let port = taken.0;
            taken.0 = if port + 1 == RANGE.end {
                RANGE.start
            } else {
                port + 1
            };
            if let Some(lock) = self.lock(port)?
                && is_free(port)
            {
                taken.1.push(lock);
                return Ok(port);
            }
        }
        anyhow::bail!("every port from {} to {} is taken", RANGE.start, RANGE.end)
    }

    fn lock(&self, port: u16) -> io::Result<Option<File>> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.directory.join(port.to_string()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(_) => true,
            // A machine without IPv6 has nobody who listens there.
            Err(error) => error.kind() != io::ErrorKind::AddrInUse,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tests_have_the_same_port() {
        let (a, b) = (Ports::new().unwrap(), Ports::new().unwrap());
        let mut all: Vec<_> = (0..20)
            .flat_map(|_| [a.take().unwrap(), b.take().unwrap()])
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);
    }
}
