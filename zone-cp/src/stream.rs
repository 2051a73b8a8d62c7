//! The sending half of a stream: a bounded queue, and an end with a reason.

use std::sync::{Arc, OnceLock};

use futures::{Stream, StreamExt as _, future, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages that may wait in one stream's queue. Whoever is that far behind is disconnected, and gets what it lacks when
/// it comes again.
/// (A dataplane that comes is sent one message for each service it uses; memory is taken only for what waits.)
pub const QUEUE: usize = 16 * 1024;

/// Sends to one peer. Dropping every clone ends the stream after what is queued.
#[derive(Debug)]
pub struct Outgoing<M> {
    queue: mpsc::Sender<M>,
    end: Arc<End>,
}

impl<M> Clone for Outgoing<M> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            end: self.end.clone(),
        }
    }
}

/// The end of a stream.
#[derive(Debug, Default)]
pub struct End {
    reason: OnceLock<Status>,
    token: CancellationToken,
}

impl End {
    /// Waits for the end.
    pub async fn ended(&self) {
        self.token.cancelled().await;
    }

    /// Why it ended, where somebody ended it.
    #[must_use]
    pub fn reason(&self) -> Option<&Status> {
        self.reason.get()
    }

    /// Ends the stream at once, for the first reason that is given.
    pub fn end(&self, reason: Status) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }
}

impl<M: Send + 'static> Outgoing<M> {
    /// Queues a message. A peer whose queue is full is disconnected; false is returned then.
    pub fn send(&self, message: M) -> bool {
        match self.queue.try_send(message) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.end(Status::resource_exhausted(
                    "messages were not read as fast as they came; call again to get what is missing",
                ));
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Ends the stream at once: what is queued is not sent.
    pub fn end(&self, reason: Status) {
        self.end.end(reason);
    }
}

/// A new queue: the sending half, its end, and what the peer will read.
pub fn outgoing<M: Send + 'static>() -> (
    Outgoing<M>,
    Arc<End>,
    impl Stream<Item = Result<M, Status>> + Send + 'static,
) {
    let (queue, receiver) = mpsc::channel(QUEUE);
    let end = Arc::new(End::default());
    let messages = ReceiverStream::new(receiver).map(Ok);
    let until = end.clone();
    let last = end.clone();
    let body = messages
        .take_until(async move { until.ended().await })
        .chain(
            stream::once(async move { last.reason().cloned().map(Err) }).filter_map(future::ready),
        );
    let outgoing = Outgoing {
        queue,
        end: end.clone(),
    };
    (outgoing, end, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_disconnected_with_a_reason() {
        let (outgoing, end, body) = outgoing::<usize>();
        assert!((0..QUEUE).all(|n| outgoing.send(n)));
        assert!(!outgoing.send(QUEUE));
        end.ended().await;
        let read: Vec<_> = body.collect().await;
        assert!(read.last().unwrap().is_err());
    }

    #[tokio::test]
    async fn dropping_the_sender_ends_the_stream_cleanly_after_what_is_queued() {
        let (outgoing, _end, body) = outgoing::<usize>();
        outgoing.send(1);
        drop(outgoing);
        let read: Vec<_> = body.map(|item| item.unwrap()).collect().await;
        assert_eq!(read, [1]);
    }
}
