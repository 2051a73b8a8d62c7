//! Real clients: curl, openssl, and a conversation over TCP.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    global::run_with_input,
    process::Recipe,
    wait::{SOON, eventually},
};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to an [`crate::app::Echo`], line by line.
#[derive(Debug)]
pub struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Connects to `address`, which may be a sidecar's: then this alone proves nothing.
    ///
    /// # Errors
    /// Where nobody listens.
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Says a line and returns the answer.
    ///
    /// # Errors
    /// Where the connection has ended, or nothing comes.
    pub fn say(&mut self, line: &str) -> anyhow::Result<String> {
        self.reader
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        let count = self.reader.read_line(&mut answer)?;
        anyhow::ensure!(count > 0, "the connection was closed");
        Ok(answer.trim_end().to_owned())
    }

    /// Waits, saying nothing, until the other side ends the connection.
    ///
    /// # Errors
    /// Where it does not within `deadline`.
    pub fn wait_for_end(&mut self, deadline: Duration) -> anyhow::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(deadline))?;
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(()),
            Ok(_) => anyhow::bail!("an answer nobody asked for: {line:?}"),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                anyhow::bail!("the connection was still open after {deadline:?}")
            }
            // A reset ends it as well.
            Err(_) => Ok(()),
        }
    }
}

/// An HTTP/1.1 connection that is kept open between requests.
#[derive(Debug)]
pub struct KeptAlive(Conversation);

impl KeptAlive {
    /// Connects to `address`.
    ///
    /// # Errors
    /// Where nobody listens.
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        Conversation::open(address).map(Self)
    }

    /// Asks for `path`, and returns the body of an answer of known length.
    ///
    /// # Errors
    /// Where the connection ends, or the answer is not what is wanted.
    pub fn get(&mut self, path: &str) -> anyhow::Result<String> {
        self.ask(path).map(|(_, body)| body)
    }

    /// The same, with the status of the answer.
    ///
    /// # Errors
    /// Where the connection ends, or what comes is no answer.
    pub fn ask(&mut self, path: &str) -> anyhow::Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n");
        self.0.reader.get_mut().write_all(request.as_bytes())?;
        let (mut length, mut line) = (0, String::new());
        let mut status = None;
        loop {
            line.clear();
            anyhow::ensure!(
                self.0.reader.read_line(&mut line)? > 0,
                "the connection was closed"
            );
            let header = line.trim_end().to_ascii_lowercase();
            if status.is_none() {
                status = header.split(' ').nth(1).and_then(|code| code.parse().ok());
                anyhow::ensure!(status.is_some(), "no answer of HTTP: {header:?}");
            }
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok((status.unwrap_or_default(), body))
    }
}

/// Who answers at `address`: the name of the echo behind it.
///
/// # Errors
/// Where nobody does.
pub fn who_answers(address: SocketAddr) -> anyhow::Result<String> {
    let answer = Conversation::open(address)?.say("who?")?;
    let name = answer.strip_suffix(": who?");
    Ok(name
        .with_context(|| format!("a strange answer: {answer:?}"))?
        .to_owned())
}

/// Waits until `name` answers at `address`.
///
/// # Errors
/// Where it does not soon.
pub fn wait_for_answer(address: SocketAddr, name: &str) -> anyhow::Result<()> {
    eventually(SOON, &format!("{name} answers"), || {
        let who = who_answers(address)?;
        anyhow::ensure!(who == name, "{who} answers");
        Ok(())
    })
}

/// Waits until nobody answers at `address`, and sees to it that it stays so for some more attempts.
///
/// # Errors
/// Where somebody goes on answering.
pub fn wait_for_refusal(address: SocketAddr) -> anyhow::Result<()> {
    eventually(SOON, "connections are refused", || {
        match who_answers(address) {
            Ok(who) => anyhow::bail!("{who} still answers"),
            Err(_) => Ok(()),
        }
    })?;
    for _ in 0..5 {
        if let Ok(who) = who_answers(address) {
            anyhow::bail!("refused once, and now {who} answers again");
        }
    }
    Ok(())
}

/// What a command line client printed, and whether it succeeded.
#[derive(Debug, Clone)]
pub struct Printed {
    /// It ended with 0.
    pub success: bool,
    /// Standard output, then standard error.
    pub text: String,
}

fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<Printed> {
    let output = run_with_input(&Recipe::new(Path::new(program)), arguments, input)?;
    Ok(Printed {
        success: output.status.success(),
        text: format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    })
}

/// Runs curl.
///
/// # Errors
/// Where it is not installed.
pub fn curl(arguments: &[&str]) -> anyhow::Result<Printed> {
    let mut all = vec![
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--noproxy",
        "*",
    ];
    all.extend(arguments);
    run("curl", &all, "")
}

/// Runs `openssl s_client` against `address`, says `input` and waits for the end of the connection.
///
/// # Errors
/// Where it is not installed.
pub fn openssl_client(
    address: SocketAddr,
    arguments: &[String],
    input: &str,
) -> anyhow::Result<Printed> {
    let address = address.to_string();
    let mut all = vec![
        "20", "openssl", "s_client", "-connect", &address, "-ign_eof",
    ];
    all.extend(arguments.iter().map(String::as_str));
    run("timeout", &all, input)
}
