//! Messages of HTTP/1 as they are on the wire, for callers and applications of the tests. Read strictly: whatever is odd is told.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// The request line or status line.
    pub(crate) start: String,
    /// With names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Interim answers that came before: status and fields.
    pub(crate) interim: Vec<Message>,
    /// How long the body was said to be.
    pub(crate) framing: Framing,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Framing {
    #[default]
    None,
    Length,
    Chunked,
    UntilClose,
}

impl Message {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(field, _)| field == name);
        let first = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} is there twice: {self:?}");
        first
    }

    /// Of an answer.
    pub(crate) fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1).unwrap_or_default();
        status.parse().unwrap_or_else(|_| panic!("{}", self.start))
    }

    pub(crate) fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    pub(crate) fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn closes(&self) -> bool {
        self.field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// One connection, and what has come on it and was not looked at.
pub(crate) struct Wire<S> {
    pub(crate) stream: S,
    pub(crate) buffer: Vec<u8>,
}

fn odd<T>(what: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, what.into()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Reads more. False: the peer has ended.
    async fn fill(&mut self) -> io::Result<bool> {
        let mut scratch = vec![0; 64 * 1024];
        let count = self.stream.read(&mut scratch).await?;
        self.buffer.extend_from_slice(&scratch[..count]);
        Ok(count > 0)
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return match String::from_utf8(line[..end].to_vec()) {
                    Ok(line) => Ok(Some(line)),
                    Err(_) => odd("a line is not UTF-8"),
                };
            }
            if !self.fill().await? {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => odd("ended in the midst of a line"),
                };
            }
        }
    }

    async fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let Some(line) = self.line().await? else {
                return odd("ended in the midst of a head");
            };
            if line.is_empty() {
                return Ok(fields);
            }
            let Some((name, value)) = line.split_once(':') else {
                return odd(format!("no field: {line:?}"));
            };
            if name.is_empty() || name.contains([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
                return odd(format!("a malformed field: {line:?}"));
            }
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next head. `None`: the peer has ended.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Message>> {
        let Some(start) = self.line().await? else {
            return Ok(None);
        };
        Ok(Some(Message {
            start,
            fields: self.fields().await?,
            ..Message::default()
        }))
    }

    /// Reads the body of a message, for which `otherwise` holds where it says nothing of its length.
    pub(crate) async fn body(
        &mut self,
        message: &mut Message,
        otherwise: Framing,
    ) -> io::Result<()> {
        let length = message.field("content-length").map(str::to_owned);
        match (message.field("transfer-encoding"), length) {
            (Some("chunked"), None) => {
                message.framing = Framing::Chunked;
                self.chunks(message).await
            }
            (None, Some(length)) => {
                message.framing = Framing::Length;
                let Ok(length) = length.parse() else {
                    return odd(format!("a length of {length:?}"));
                };
                while self.buffer.len() < length {
                    if !self.fill().await? {
                        return odd("ended in the midst of a body");
                    }
                }
                message.body = self.buffer.drain(..length).collect();
                Ok(())
            }
            (None, None) if otherwise == Framing::UntilClose => {
                message.framing = Framing::UntilClose;
                while self.fill().await? {}
                message.body = std::mem::take(&mut self.buffer);
                Ok(())
            }
            (None, None) => Ok(()),
            (Some(_), _) => odd(format!("framed in an odd way: {message:?}")),
        }
    }

    async fn chunks(&mut self, message: &mut Message) -> io::Result<()> {
        loop {
            let Some(line) = self.line().await? else {
                return odd("ended in the midst of a body");
            };
            let Ok(size) = usize::from_str_radix(&line, 16) else {
                return odd(format!("a chunk of size {line:?}"));
            };
            if size == 0 {
                message.trailers = self.fields().await?;
                return Ok(());
            }
            while self.buffer.len() < size + 2 {
                if !self.fill().await? {
                    return odd("ended in the midst of a chunk");
                }
            }
            message.body.extend(self.buffer.drain(..size));
            if self.buffer.drain(..2).collect::<Vec<_>>() != b"\r\n" {
                return odd("a chunk without an end");
            }
        }
    }

    /// The next whole request. `None`: the peer has ended.
    pub(crate) async fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(mut message) = self.head().await? else {
            return Ok(None);
        };
        self.body(&mut message, Framing::None).await?;
        Ok(Some(message))
    }

    /// The next whole answer to a request with `method`, with what came before it.
    pub(crate) async fn answer(&mut self, method: &str) -> io::Result<Message> {
        let mut interim = Vec::new();
        loop {
            let Some(mut message) = self.head().await? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let status = message.status();
            if (100..200).contains(&status) && status != 101 {
                interim.push(message);
                continue;
            }
            message.interim = interim;
            if method != "HEAD" && !matches!(status, 101 | 204 | 304) {
                self.body(&mut message, Framing::UntilClose).await?;
            }
            return Ok(message);
        }
    }

    /// Waits for the peer's end, before which nothing may come.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() && !self.fill().await? {
            return Ok(());
        }
        odd(format!(
            "came instead of the end: {:?}",
            String::from_utf8_lossy(&self.buffer)
        ))
    }
}
