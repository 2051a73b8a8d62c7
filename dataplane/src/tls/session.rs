//! One TLS session without buffers of its own: bytes in, bytes out, driven by the caller.

use rustls::{
    CommonState,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};

/// More than a record's header, content type and tag, and a close_notify or key update, take beside the payload.
const RECORD_OVERHEAD: usize = 64;
/// Payload of a full record.
const RECORD_PAYLOAD: usize = 16 * 1024;
/// The longest record on the wire (RFC 8446 §5.2).
pub const RECORD_BYTES_MAX: usize = 5 + RECORD_PAYLOAD + 256;

/// One TLS session.
///
/// Feed what has arrived to [`Self::receive`], encrypt with [`Self::send`], end with [`Self::finish`]; each appends to
/// `outgoing` what must be sent, in that order.
///
/// What `receive` has not consumed must be given as `incoming` to every later call, from the same first byte: rustls
/// remembers positions in it (of a handshake message in several records) and panics where they are gone.
pub enum Session {
    /// The side that called.
    Client(Box<UnbufferedClientConnection>),
    /// The side that was called.
    Server(Box<UnbufferedServerConnection>),
}

/// Where a session stands once it has taken all it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The handshake needs more from the peer.
    Handshaking,
    /// Application data may be sent.
    Open,
    /// The same, and the peer has said that it sends no more.
    PeerClosed,
}

/// What [`Session::receive`] has done.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes of the input that are done with; the rest must be there, at the front, at the next call.
    pub consumed: usize,
    /// Where the session stands.
    pub standing: Standing,
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer broke the protocol, was refused, or sent an alert.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The session is in no state to do what it is asked, or its keys are used up.
    #[error("the TLS session can not go on: {0}")]
    Unexpected(String),
}

impl Session {
    /// Takes bytes from the peer. Appends application data to `plain` and what must be sent back to `outgoing`.
    ///
    /// # Errors
    /// Where the session is over; `outgoing` then ends with the alert that says so.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Received, SessionError> {
        match self {
            Self::Client(session) => receive(&mut **session, input, plain, outgoing),
            Self::Server(session) => receive(&mut **session, input, plain, outgoing),
        }
    }

    /// Encrypts `plain` to the front of `buffer`, which grows where it is too short, and returns how many bytes of it
    /// are to be sent.
    ///
    /// # Errors
    /// Where the session can not send.
    pub fn send(
        &mut self,
        plain: &[u8],
        incoming: &mut Vec<u8>,
        buffer: &mut Vec<u8>,
    ) -> Result<usize, SessionError> {
        let records = plain.len() / RECORD_PAYLOAD + 1;
        let room = plain.len() + records * RECORD_OVERHEAD;
        let mut output = Output {
            bytes: buffer,
            end: 0,
        };
        self.write(room, incoming, &mut output, Write::Data(plain))?;
        Ok(output.end)
    }

    /// Appends the close_notify that ends what we send.
    ///
    /// # Errors
    /// Where the session can not send.
    pub fn finish(
        &mut self,
        incoming: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        Output::append(outgoing, |output| {
            self.write(RECORD_OVERHEAD, incoming, output, Write::End)
        })
    }

    fn write(
        &mut self,
        room: usize,
        incoming: &mut Vec<u8>,
        output: &mut Output<'_>,
        what: Write<'_>,
    ) -> Result<(), SessionError> {
        match self {
            Self::Client(session) => write(&mut **session, room, incoming, output, what),
            Self::Server(session) => write(&mut **session, room, incoming, output, what),
        }
    }

    /// What both sides have agreed on.
    #[must_use]
    pub fn common(&self) -> &CommonState {
        match self {
            Self::Client(session) => session,
            Self::Server(session) => session,
        }
    }
}

/// The call that client and server connections have in common without sharing a trait for it.
trait Process {
    type Data;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(input)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(input)
    }
}

fn receive<P: Process>(
    session: &mut P,
    input: &mut [u8],
    plain: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> Result<Received, SessionError> {
    let mut consumed = 0;
    let mut peer_closed = false;
    loop {
        let status = session.process(&mut input[consumed..]);
        consumed += status.discard;
        let standing = match status.state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    plain.extend_from_slice(record.payload);
                    consumed += record.discard;
                }
                continue;
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                Output::append(outgoing, |output| encode(&mut data, output))?;
                continue;
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                continue;
            }
            Ok(ConnectionState::PeerClosed) => {
                peer_closed = true;
                continue;
            }
            Ok(ConnectionState::WriteTraffic(_)) if peer_closed => Standing::PeerClosed,
            Ok(ConnectionState::WriteTraffic(_)) => Standing::Open,
            Ok(ConnectionState::Closed) => Standing::PeerClosed,
            Ok(ConnectionState::BlockedHandshake) => Standing::Handshaking,
            Ok(other) => return Err(SessionError::Unexpected(format!("{other:?}"))),
            Err(error) => {
                take_alert(session, &mut input[consumed..], outgoing);
                return Err(error.into());
            }
        };
        return Ok(Received { consumed, standing });
    }
}

/// After an error, the alert that tells the peer waits to be sent. It is a courtesy: where it can not be had, the
/// session is over all the same.
fn take_alert<P: Process>(session: &mut P, rest: &mut [u8], outgoing: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = session.process(rest).state {
        let _ = Output::append(outgoing, |output| encode(&mut data, output));
    }
}

#[derive(Clone, Copy)]
enum Write<'a> {
    Data(&'a [u8]),
    End,
}

/// Writes to the end of `output`, with `room` bytes to begin with and more where rustls asks for it.
fn write<P: Process>(
    session: &mut P,
    mut room: usize,
    incoming: &mut Vec<u8>,
    output: &mut Output<'_>,
    what: Write<'_>,
) -> Result<(), SessionError> {
    loop {
        let status = session.process(incoming);
        let discard = status.discard;
        let mut written = None;
        match status.state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let count = match what {
                    Write::Data(plain) => traffic.encrypt(plain, output.room(room)),
                    Write::End => traffic.queue_close_notify(output.room(room)),
                };
                output.end += count.as_ref().map_or(0, |count| *count);
                written = Some(count);
            }
            // A key update of ours, or the answer to the peer's, goes first.
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, output)?,
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(other) => return Err(SessionError::Unexpected(format!("{other:?}"))),
            Err(error) => return Err(error.into()),
        }
        incoming.drain(..discard);
        match written {
            None => {}
            Some(Ok(_)) => return Ok(()),
            Some(Err(EncryptError::InsufficientSize(wanted))) if wanted.required_size > room => {
                room = wanted.required_size;
            }
            Some(Err(error)) => return Err(SessionError::Unexpected(error.to_string())),
        }
    }
}

/// A buffer of which the first `end` bytes are taken. Its length only grows, so that bytes are zeroed once, not at each
/// message.
struct Output<'a> {
    bytes: &'a mut Vec<u8>,
    end: usize,
}

impl Output<'_> {
    /// At least `count` bytes after what is taken.
    fn room(&mut self, count: usize) -> &mut [u8] {
        if self.bytes.len() < self.end + count {
            self.bytes.resize(self.end + count, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Lets `write` append to `bytes`, whose length is what is taken.
    fn append<T>(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Output<'_>) -> T) -> T {
        let end = bytes.len();
        let mut output = Output { bytes, end };
        let result = write(&mut output);
        let end = output.end;
        bytes.truncate(end);
        result
    }
}

fn encode<Data>(
    data: &mut EncodeTlsData<'_, Data>,
    output: &mut Output<'_>,
) -> Result<(), SessionError> {
    let mut room = 0;
    loop {
        match data.encode(output.room(room)) {
            Ok(written) => {
                output.end += written;
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(wanted)) if wanted.required_size > room => {
                room = wanted.required_size;
            }
            Err(error) => return Err(SessionError::Unexpected(error.to_string())),
        }
    }
}
