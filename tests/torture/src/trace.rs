//! What a run did to its files, as strace saw it.
//!
//! A call takes effect somewhere between its beginning and its end, which strace tells apart where threads overlap. A
//! write counts from its end on; a sync covers what had ended before it began, and counts from its end on. This is the
//! least that is promised.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The calls that are recorded. All that change files, so that none is missed; those that make nothing durable
/// (`sync_file_range`) are not among those that count.
pub const CALLS: &str = "trace=openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,\
rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,syncfs,sync,sync_file_range,\
copy_file_range,sendfile,splice,link,linkat,symlink,symlinkat";

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file is there from now on, empty where it was not before.
    Create(PathBuf),
    /// It is emptied.
    Empty(PathBuf),
    /// A directory is there.
    MakeDir(PathBuf),
    /// Bytes are written.
    Write(PathBuf, u64, Vec<u8>),
    /// The file gets another length.
    Resize(PathBuf, u64),
    /// A file gets another name.
    Rename(PathBuf, PathBuf),
    /// A name goes away.
    Remove(PathBuf),
    /// A file's content, or a directory's names, are on disk.
    Sync(PathBuf),
    /// The process says something.
    Say(String),
    /// The process logs something.
    Log(String),
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Place in the trace where it began.
    pub began: usize,
    /// Place in the trace where it ended.
    pub ended: usize,
    /// What it did.
    pub what: What,
}

/// Reads a trace: what happened below `directory`, and what the process said, in the order of the calls' ends.
///
/// # Errors
/// Where a call changes a file in a way that is not understood.
pub fn read(text: &[u8], directory: &Path) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    // Beginnings of calls that other threads interrupted in the trace.
    let mut begun: HashMap<&[u8], (usize, Vec<u8>)> = HashMap::new();
    let mut reader = Reader {
        directory,
        positions: HashMap::new(),
    };
    for (place, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else {
            continue;
        };
        let (pid, rest) = (&line[..space], line[space..].trim_ascii());
        if let Some(first) = rest.strip_suffix(b"<unfinished ...>") {
            begun.insert(pid, (place, first.trim_ascii_end().to_vec()));
            continue;
        }
        let (began, call) = match rest.strip_prefix(b"<... ") {
            None => (place, rest.to_vec()),
            Some(resumed) => {
                let at = find(resumed, b"resumed>").context("a call that is resumed")?;
                let (began, mut first) = begun.remove(pid).context("resumed without beginning")?;
                first.extend_from_slice(&resumed[at + b"resumed>".len()..]);
                (began, first)
            }
        };
        let call = String::from_utf8_lossy(&call).into_owned();
        reader
            .event(&call)
            .with_context(|| format!("line {}: {:.300}", place + 1, call))?
            .into_iter()
            .for_each(|what| {
                events.push(Event {
                    began,
                    ended: place,
                    what,
                });
            });
    }
    Ok(events)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

struct Reader<'a> {
    directory: &'a Path,
    // Where the next `write` goes, by file descriptor, for those opened below the directory.
    positions: HashMap<u64, u64>,
}

impl Reader<'_> {
    fn event(&mut self, call: &str) -> anyhow::Result<Vec<What>> {
        let Some((name, rest)) = call.split_once('(') else {
            return Ok(Vec::new());
        };
        let Some((arguments, result)) = rest.rsplit_once(") ") else {
            return Ok(Vec::new());
        };
        let result = result.trim_start().trim_start_matches("= ");
        if result.starts_with('-') || result.starts_with('?') {
            return Ok(Vec::new());
        }
        let arguments = split(arguments);
        match name {
            "openat" | "open" => self.open(&arguments, result),
            "write" => self.write(&arguments),
            "pwrite64" => {
                let Some(path) = self.inside(&arguments[0]) else {
                    return Ok(Vec::new());
                };
                let bytes = whole(&arguments[1], result)?;
                Ok(vec![What::Write(path, arguments[3].parse()?, bytes)])
            }
            "ftruncate" => Ok(self
                .inside(&arguments[0])
                .map(|path| anyhow::Ok(What::Resize(path, arguments[1].parse()?)))
                .transpose()?
                .into_iter()
                .collect()),
            "fsync" | "fdatasync" => Ok(self
                .inside(&arguments[0])
                .map(What::Sync)
                .into_iter()
                .collect()),
            "rename" => self.rename(&arguments[0], &arguments[1]),
            "renameat" | "renameat2" => self.rename(&arguments[1], &arguments[3]),
            "unlink" | "rmdir" => Ok(self
                .named(&arguments[0])
                .map(What::Remove)
                .into_iter()
                .collect()),
            "unlinkat" => Ok(self
                .named(&arguments[1])
                .map(What::Remove)
                .into_iter()
                .collect()),
            "mkdir" => Ok(self
                .named(&arguments[0])
                .map(What::MakeDir)
                .into_iter()
                .collect()),
            "mkdirat" => Ok(self
                .named(&arguments[1])
                .map(What::MakeDir)
                .into_iter()
                .collect()),
            // Not a promise: it flushes neither the disk's cache nor the file's length.
            "sync_file_range" => Ok(Vec::new()),
            _ => {
                let ours = arguments.iter().any(|argument| {
                    self.inside(argument)
                        .or_else(|| self.named(argument))
                        .is_some()
                });
                if ours {
                    bail!("a call that is not understood");
                }
                Ok(Vec::new())
            }
        }
    }

    fn open(&mut self, arguments: &[String], result: &str) -> anyhow::Result<Vec<What>> {
        let (path, flags) = match arguments.first() {
            Some(first) if first.starts_with('"') => (first, &arguments[1]),
            _ => (&arguments[1], &arguments[2]),
        };
        let number = result.split('<').next().unwrap_or_default().parse()?;
        self.positions.remove(&number);
        let Some(path) = self.named(path) else {
            return Ok(Vec::new());
        };
        let mut events = Vec::new();
        if flags.contains("O_CREAT") {
            events.push(What::Create(path.clone()));
        }
        if flags.contains("O_TRUNC") {
            events.push(What::Empty(path.clone()));
        }
        if flags.contains("O_APPEND") {
            bail!("a file opened to append, which is not understood");
        }
        self.positions.insert(number, 0);
        Ok(events)
    }

    fn write(&mut self, arguments: &[String]) -> anyhow::Result<Vec<What>> {
        let bytes = unquote(&arguments[1])?;
        let number: u64 = arguments[0].split('<').next().unwrap_or_default().parse()?;
        if number == 1 || number == 2 {
            let what = if number == 1 { What::Say } else { What::Log };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            return Ok(text.lines().map(|line| what(line.to_owned())).collect());
        }
        let Some(path) = self.inside(&arguments[0]) else {
            return Ok(Vec::new());
        };
        let at = self.positions.get_mut(&number).context("never opened")?;
        let offset = *at;
        *at += bytes.len() as u64;
        Ok(vec![What::Write(path, offset, bytes)])
    }

    fn rename(&self, from: &str, to: &str) -> anyhow::Result<Vec<What>> {
        match (self.named(from), self.named(to)) {
            (Some(from), Some(to)) => Ok(vec![What::Rename(from, to)]),
            (None, None) => Ok(Vec::new()),
            _ => bail!("a file is moved into the directory, or out of it"),
        }
    }

    /// The path of `4</path>`, relative to the directory.
    fn inside(&self, argument: &str) -> Option<PathBuf> {
        let (_, rest) = argument.split_once('<')?;
        let path = unescape(rest.strip_suffix('>')?).ok()?;
        self.relative(&path)
    }

    /// The path of `"/path"`, relative to the directory.
    fn named(&self, argument: &str) -> Option<PathBuf> {
        self.relative(&unquote(argument).ok()?)
    }

    fn relative(&self, path: &[u8]) -> Option<PathBuf> {
        let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
        path.strip_prefix(self.directory).ok().map(Path::to_owned)
    }
}

/// The bytes of a write, all of which must have been written.
fn whole(argument: &str, result: &str) -> anyhow::Result<Vec<u8>> {
    let bytes = unquote(argument)?;
    let written: usize = result.parse()?;
    if written != bytes.len() {
        bail!("{written} bytes of {} were written", bytes.len());
    }
    Ok(bytes)
}

/// Splits arguments at commas outside of quotes and angle brackets. In the trace, both hold only escapes.
fn split(arguments: &str) -> Vec<String> {
    arguments.split(", ").map(str::to_owned).collect()
}

fn unquote(argument: &str) -> anyhow::Result<Vec<u8>> {
    let inner = argument
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .context("no whole string")?;
    unescape(inner)
}

/// `\x2f\x74…`
fn unescape(text: &str) -> anyhow::Result<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => bail!("no digit"),
    };
    text.as_bytes()
        .chunks(4)
        .map(|escape| match escape {
            [b'\\', b'x', high, low] => Ok(digit(*high)? << 4 | digit(*low)?),
            _ => bail!("no escape: {text:.40}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    #[test]
    fn interrupted_calls_are_put_together() {
        let file = hex("/d/f");
        let text = format!(
            "1 openat(AT_FDCWD<{}>, \"{file}\", O_WRONLY|O_CREAT|O_CLOEXEC, 0600) = 4<{file}>\n\
             1 pwrite64(4<{file}>, \"{}\", 2, 7 <unfinished ...>\n\
             2 fdatasync(4<{file}>) = 0\n\
             1 <... pwrite64 resumed>) = 2\n\
             2 write(1<{}>, \"{}\", 5) = 5\n\
             2 fsync(9<{}>) = 0\n",
            hex("/"),
            hex("ab"),
            hex("/pipe"),
            hex("ok 1\n"),
            hex("/elsewhere"),
        );
        let events = read(text.as_bytes(), Path::new("/d")).unwrap();
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.began, event.ended, event.what.clone()))
            .collect();
        assert_eq!(
            seen,
            [
                (0, 0, What::Create("f".into())),
                (2, 2, What::Sync("f".into())),
                (1, 3, What::Write("f".into(), 7, b"ab".to_vec())),
                (4, 4, What::Say("ok 1".to_owned())),
            ]
        );
    }
}
