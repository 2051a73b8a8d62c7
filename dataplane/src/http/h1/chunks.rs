//! Bodies in chunks (RFC 9112 §7.1), read strictly: sizes are hexadecimal digits, lines end with CR LF.
//!
//! Chunk extensions mean nothing to anybody and have been used to smuggle requests: they are refused, as nginx and haproxy never
//! needed them in practice and some servers read them differently.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::head::take_trailers;
use crate::http::{limits::HttpLimits, message::strip_trailers};

/// Digits of a chunk's size: 2^60 bytes are enough.
const SIZE_DIGITS_MAX: usize = 15;

/// A body that comes in chunks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Chunks(State);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The line with the next chunk's size.
    #[default]
    Size,
    /// So many bytes of a chunk are left.
    Data(u64),
    /// The line end after a chunk.
    AfterData,
    Trailers,
}

/// What a body in chunks consists of.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Some of it.
    Data(Bytes),
    /// The end, with trailers.
    End(HeaderMap),
}

impl Chunks {
    /// Takes the next piece out of `buffer`. `None`: more has to come first.
    ///
    /// # Errors
    /// What is wrong; nothing can be read from here on.
    pub fn take(
        &mut self,
        buffer: &mut BytesMut,
        limits: &HttpLimits,
    ) -> Result<Option<Piece>, &'static str> {
        loop {
            match self.0 {
                State::Size => match take_size(buffer)? {
                    None => return Ok(None),
                    Some(0) => self.0 = State::Trailers,
                    Some(size) => self.0 = State::Data(size),
                },
                State::Data(_) if buffer.is_empty() => return Ok(None),
                State::Data(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX);
                    let data = buffer.split_to(count.min(buffer.len())).freeze();
                    self.0 = match left - data.len() as u64 {
                        0 => State::AfterData,
                        left => State::Data(left),
                    };
                    return Ok(Some(Piece::Data(data)));
                }
                State::AfterData => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        let _ = buffer.split_to(2);
                        self.0 = State::Size;
                    }
                    Some(_) => return Err("a chunk is longer than its size"),
                    None if matches!(buffer.first(), None | Some(b'\r')) => return Ok(None),
                    None => return Err("a chunk is longer than its size"),
                },
                State::Trailers => {
                    if matches!(&buffer[..], b"" | b"\r") {
                        return Ok(None);
                    }
                    return match take_trailers(buffer, limits) {
                        Ok(None) => Ok(None),
                        Ok(Some(mut trailers)) => {
                            strip_trailers(&mut trailers);
                            Ok(Some(Piece::End(trailers)))
                        }
                        Err(_) => Err("the trailers are malformed or too long"),
                    };
                }
            }
        }
    }
}

fn take_size(buffer: &mut BytesMut) -> Result<Option<u64>, &'static str> {
    let digits = buffer
        .iter()
        .take(SIZE_DIGITS_MAX + 1)
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    if digits > SIZE_DIGITS_MAX {
        return Err("a chunk's size has too many digits");
    }
    match &buffer[digits..] {
        [b'\r', b'\n', ..] if digits > 0 => {}
        [] => return Ok(None),
        [b'\r'] if digits > 0 => return Ok(None),
        [b';', ..] => return Err("a chunk has an extension"),
        _ => return Err("a chunk's size is malformed"),
    }
    let size = buffer[..digits].iter().fold(0, |size, digit| {
        size << 4 | u64::from((*digit as char).to_digit(16).unwrap_or_default())
    });
    let _ = buffer.split_to(digits + 2);
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str, step: usize) -> Result<(String, Option<HeaderMap>, String), &'static str> {
        let (mut chunks, mut buffer, mut body) =
            (Chunks::default(), BytesMut::new(), String::new());
        for piece in input.as_bytes().chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(piece) = chunks.take(&mut buffer, &HttpLimits::default())? {
                match piece {
                    Piece::Data(data) => body.push_str(std::str::from_utf8(&data).unwrap()),
                    Piece::End(trailers) => {
                        let consumed = input.len() - buffer.len();
                        let _ = consumed;
                        return Ok((
                            body,
                            Some(trailers),
                            String::from_utf8_lossy(&buffer).into(),
                        ));
                    }
                }
            }
        }
        Ok((body, None, String::from_utf8_lossy(&buffer).into()))
    }

    #[test]
    fn bodies_are_read_however_they_are_cut() {
        let whole = "5\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-sum: 1\r\nhost: evil\r\n\r\n";
        for step in 1..whole.len() {
            let (body, trailers, _) = read(whole, step).unwrap();
            assert_eq!(body, "hello0123456789", "{step}");
            let trailers = trailers.unwrap();
            assert_eq!(trailers.len(), 1, "{step}");
            assert_eq!(trailers["x-sum"], "1");
        }
        let (body, trailers, rest) = read("1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n", 100).unwrap();
        assert_eq!((&*body, trailers), ("a", Some(HeaderMap::new())));
        assert_eq!(rest, "GET / HTTP/1.1\r\n");
    }

    #[test]
    fn what_others_might_read_differently_is_refused() {
        for bad in [
            "5;x=y\r\nhello\r\n",
            "5 \r\nhello\r\n",
            " 5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\rhello\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "\r\nhello",
            "g\r\n",
            "1000000000000000\r\n",
            "0\r\nx: y\n\r\n",
            "0\r\nx : y\r\n\r\n",
            "0\r\n x: y\r\n\r\n",
            "0\r\nx: a\0b\r\n\r\n",
        ] {
            assert!(read(bad, 1).is_err(), "{bad:?}");
            assert!(read(bad, 100).is_err(), "{bad:?}");
        }
        let long = format!("0\r\nx: {}\r\n\r\n", "y".repeat(200_000));
        assert!(read(&long, 4096).is_err());
    }
}
