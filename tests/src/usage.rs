//! Memory and CPU time of a process, from `/proc`.

use std::{fs, time::Duration};

use anyhow::Context as _;

/// Resident memory in KiB (`VmRSS`).
///
/// # Errors
/// Where the process is gone.
pub fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")
}

/// CPU time in user and kernel mode so far.
///
/// # Errors
/// Where the process is gone.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold spaces; what follows it is numbered from field 3 on (proc(5)).
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .context("malformed stat")?
        .1
        .split_whitespace()
        .collect();
    let ticks = |at: usize| -> anyhow::Result<u64> {
        Ok(fields.get(at - 3).context("malformed stat")?.parse()?)
    };
    // Linux fixes USER_HZ at 100.
    Ok(Duration::from_millis((ticks(14)? + ticks(15)?) * 10))
}

/// The process and all its children (nginx, haproxy and Envoy start some).
#[must_use]
pub fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().flat_map(str::parse) {
        all.extend(family(child));
    }
    all
}

/// Number of open file descriptors.
///
/// # Errors
/// Where the process is gone.
pub fn descriptors(pid: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_descriptors() {
        let pid = std::process::id();
        assert!(resident_kib(pid).unwrap() > 100);
        assert!(descriptors(pid).unwrap() > 2);
        cpu_time(pid).unwrap();
    }
}
