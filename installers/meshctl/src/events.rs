//! Server-sent events: bytes in, events out.

use std::collections::VecDeque;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its sort; "" for ordinary ones.
    pub(crate) name: String,
    /// Its id, where it has one.
    pub(crate) id: Option<String>,
    /// What it says.
    pub(crate) data: String,
}

/// More than any event has; a server that sends more sends no events.
const EVENT_MAX: usize = 16 << 20;

/// Puts events together from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Events {
    bytes: Vec<u8>,
    event: Event,
    begun: bool,
    ready: VecDeque<Event>,
}

impl Events {
    /// Takes what has come.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.bytes.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(at) = self.bytes[from..].iter().position(|byte| *byte == b'\n') {
            let line = self.bytes[from..from + at].strip_suffix(b"\r");
            let line = line.unwrap_or(&self.bytes[from..from + at]);
            let line = std::str::from_utf8(line)
                .map_err(|_| "an event is no text".to_owned())?
                .to_owned();
            from += at + 1;
            self.line(&line);
        }
        self.bytes.drain(..from);
        if self.bytes.len() + self.event.data.len() > EVENT_MAX {
            return Err("an event is larger than any should be".to_owned());
        }
        Ok(())
    }

    /// The next event that is whole.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.begun) {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if self.begun {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.begun = true;
            }
            // A comment, by which the server says that it is there, or nothing we know.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_their_bytes_come() {
        let text = "data: {\"a\":\"ä\"}\n\n: alive\n\nevent: bookmark\nid: 7\ndata: 1\r\ndata: 2\r\n\r\ndata: unfinished\n";
        let wanted = vec![
            Event {
                data: "{\"a\":\"ä\"}".to_owned(),
                ..Event::default()
            },
            Event {
                name: "bookmark".to_owned(),
                id: Some("7".to_owned()),
                data: "1\n2".to_owned(),
            },
        ];
        for size in 1..text.len() {
            let mut events = Events::default();
            for chunk in text.as_bytes().chunks(size) {
                events.push(chunk).unwrap();
            }
            let read: Vec<_> = std::iter::from_fn(|| events.next()).collect();
            assert_eq!(read, wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn what_never_ends_is_no_event() {
        let mut events = Events::default();
        let mut answer = Ok(());
        for _ in 0..17 {
            answer = events.push(&vec![b'x'; 1 << 20]);
        }
        assert!(answer.is_err());
    }
}
