//! Who is measured, and how each is configured: as it would be to serve long prompts and streams, with its log of requests off.
//!
//! * *nginx* has as many worker processes as our router has threads, keeps connections to the workers, passes streams on as
//!   they come (`proxy_buffering off`) and holds a request in memory, as we do, instead of writing it to a file.
//! * *haproxy* has as many threads, uses any idle connection to a worker again, and passes streams on as they come
//!   (`http-no-delay`).
//! * *ours* is `router-grpc serve` with the policy `cache_aware` and its defaults, but for the level of its log; *beside*, if it is given, is
//!   another build of it.
//! * *sglang-router* and *vllm-router* have the policy `cache_aware` and their defaults, but for the level of their logs. They
//!   are started where `python3` finds them: `python3 -m venv peers; peers/bin/pip install sglang-router==0.3.2 vllm-router`,
//!   and `peers/bin` first in `PATH`.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Fault;
use crate::link::unlimited;

/// Name of our router in rows.
pub(crate) const OURS: &str = "espalier";

/// Name of another build of it.
pub(crate) const BESIDE: &str = "beside";

/// Name of the load going straight to the workers.
pub(crate) const DIRECT: &str = "direct";

/// Time for a process to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most of what a contestant has said that is shown of one that does not work.
const MOST_SHOWN: usize = 4096;

/// Someone between clients and workers.
#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    /// Where clients connect.
    pub(crate) targets: Vec<SocketAddr>,
    running: Option<Running>,
}

/// A process, and what it reads and writes.
#[derive(Debug)]
struct Running {
    child: Child,
    files: TempDir,
}

/// Whether requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    Off,
    /// One line a request, into a file.
    Requests,
}

impl Contestant {
    pub(crate) fn direct(workers: &[SocketAddr]) -> Self {
        Self { name: DIRECT, targets: workers.to_vec(), running: None }
    }

    pub(crate) fn ours(
        name: &'static str,
        program: &Path,
        workers: &[SocketAddr],
        log: Log,
    ) -> Result<Self, Fault> {
        let level = if log == Log::Off { "warn" } else { "info" };
        Self::start(name, |port, _| {
            let mut command = unlimited(program);
            command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--grpc-port", "0"]);
            command.args(["--prometheus-port", "0", "--policy", "cache_aware", "--log-level", level]);
            command.arg("--worker-urls").args(urls(workers));
            Ok(command)
        })
    }

    pub(crate) fn nginx(workers: &[SocketAddr], log: Log) -> Result<Self, Fault> {
        Self::start("nginx", |port, files| {
            fs::write(files.join("nginx.conf"), nginx_conf(workers, port, log))?;
            let mut command = unlimited("nginx");
            command.arg("-p").arg(files).args(["-c", "nginx.conf", "-e", "stderr"]);
            Ok(command)
        })
    }

    pub(crate) fn haproxy(workers: &[SocketAddr]) -> Result<Self, Fault> {
        Self::start("haproxy", |port, files| {
            let configuration = files.join("haproxy.cfg");
            fs::write(&configuration, haproxy_cfg(workers, port))?;
            let mut command = unlimited("haproxy");
            command.arg("-db").arg("-f").arg(configuration);
            Ok(command)
        })
    }

    /// A router of another project, by the name of its Python module.
    pub(crate) fn python(
        name: &'static str,
        module: &str,
        log_level: &str,
        workers: &[SocketAddr],
    ) -> Result<Self, Fault> {
        Self::start(name, |port, _| {
            let mut command = unlimited("python3");
            command.args(["-m", &format!("{module}.launch_router"), "--policy", "cache_aware"]);
            command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--log-level", log_level]);
            command.args(["--prometheus-port", &free_port()?.to_string()]);
            command.arg("--worker-urls").args(urls(workers));
            Ok(command)
        })
    }

    fn start(
        name: &'static str,
        command: impl FnOnce(u16, &Path) -> Result<Command, Fault>,
    ) -> Result<Self, Fault> {
        let files = tempfile::tempdir()?;
        let port = free_port()?;
        let said = File::create(files.path().join("said"))?;
        let mut command = command(port, files.path())?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        for (variable, _) in std::env::vars_os() {
            // What is set for our router elsewhere is not measured here.
            if ["ESPALIER_", "OTEL_", "RUST_"].iter().any(|ours| variable.to_string_lossy().starts_with(ours))
            {
                command.env_remove(variable);
            }
        }
        let child = command.spawn()?;
        let targets = vec![SocketAddr::from(([127, 0, 0, 1], port))];
        Ok(Self { name, targets, running: Some(Running { child, files }) })
    }

    /// The process to measure; the load going straight to the workers has none.
    pub(crate) fn process(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// What it has said, for somebody who wonders why it does not work.
    pub(crate) fn said(&self) -> String {
        let mut said = Vec::new();
        if let Some(running) = &self.running {
            let file = File::open(running.files.path().join("said"));
            // Nothing is said where nothing can be read.
            let _ = file.and_then(|file| file.take(MOST_SHOWN as u64).read_to_end(&mut said));
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Running {
    /// Ends it in the way that ends its processes too.
    #[expect(clippy::disallowed_methods, reason = "std can wait for a process, or for a time, not for both")]
    fn drop(&mut self) {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let give_up = Instant::now() + PATIENCE;
        while told.is_ok() && matches!(self.child.try_wait(), Ok(None)) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Both fail where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program answers when it is asked for its version.
pub(crate) fn installed(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn urls(workers: &[SocketAddr]) -> impl Iterator<Item = String> {
    workers.iter().map(|worker| format!("http://{worker}"))
}

fn free_port() -> Result<u16, Fault> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// As many threads as a multi-threaded runtime of tokio takes.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn nginx_conf(workers: &[SocketAddr], port: u16, log: Log) -> String {
    let threads = threads();
    let access_log = if log == Log::Off { "off" } else { "requests.log" };
    let servers: String = workers.iter().map(|worker| format!("        server {worker};\n")).collect();
    format!(
        "daemon off;
pid nginx.pid;
worker_processes {threads};
events {{
    worker_connections 8192;
}}
http {{
    access_log {access_log};
    keepalive_requests 1000000000;
    client_max_body_size 256m;
    client_body_buffer_size 1m;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream workers {{
{servers}        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
        }}
    }}
}}
"
    )
}

fn haproxy_cfg(workers: &[SocketAddr], port: u16) -> String {
    let threads = threads();
    let servers = workers.iter().enumerate();
    let servers: String = servers.map(|(i, worker)| format!("    server worker{i} {worker}\n")).collect();
    format!(
        "global
    nbthread {threads}
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    option http-no-delay
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance roundrobin
{servers}"
    )
}
