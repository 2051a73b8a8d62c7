//! One connection that carries as much as it can.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::Run;
use crate::{
    peers::{Service, chain::Chain},
    report::{Report, Results},
};

pub(super) fn measure(run: &Run<'_>, results: &mut Results) {
    for (service, name) in [(Service::Http1, "HTTP/1.1"), (Service::Tcp, "TCP")] {
        let what = format!("bulk, {name}");
        for chain in run.serving(service) {
            let turn = download(
                chain,
                service,
                run.effort.bulk_mib,
                &what,
                &mut results.dataplane,
            );
            if let Err(error) = turn {
                results.failed(chain.name, &what, &error);
            }
        }
    }
}

fn download(
    chain: &Chain,
    service: Service,
    mib: u64,
    what: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(chain.entry(service)?)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let before = chain.cpu()?;
    let begun = Instant::now();
    stream.write_all(b"GET /bulk HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n")?;
    let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let time = begun.elapsed();
    let cpu = chain.cpu()?.saturating_sub(before);
    anyhow::ensure!(bytes > mib << 20, "it ended after {bytes} bytes");
    let gigabytes = bytes as f64 / 1e9;
    report.add(
        chain.name,
        &format!("{what}: GB/s"),
        gigabytes / time.as_secs_f64(),
    );
    report.add(
        chain.name,
        &format!("{what}: CPU s a GB"),
        cpu.as_secs_f64() / gigabytes,
    );
    Ok(())
}
