//! A timer that is finer than a millisecond, which tokio's is not.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::io::unix::AsyncFd;

/// Ticks at an interval.
#[derive(Debug)]
pub(super) struct Ticker(AsyncFd<OwnedFd>);

impl Ticker {
    #[expect(
        deprecated,
        reason = "unsound for types that give up their descriptor, which OwnedFd does not; the other way is unsafe"
    )]
    pub(super) fn every(interval: Duration) -> anyhow::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // Zero would be never.
        let interval: Timespec = interval.max(Duration::from_nanos(1)).try_into()?;
        let when = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &when)?;
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Until the next tick, or at once where one has passed meanwhile.
    pub(super) async fn tick(&mut self) -> anyhow::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(ready.get_inner(), &mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
