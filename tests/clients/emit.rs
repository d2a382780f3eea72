use std::{env, io::ErrorKind::WouldBlock, io::Write, os::unix::net::UnixStream};
use std::{sync::mpsc, thread, time::Duration};

/// A connection to the daemon, if there is one.
struct Events(Option<UnixStream>);

impl Events {
    /// Waits for 100 ms at most; a daemon that is stopped would make `UnixStream::connect` wait for ever.
    fn connect() -> Self {
        let path = env::var_os("ARTIFACTS_AGENT_SOCKET");
        let path = path.unwrap_or_else(|| "/run/artifacts-agent/events.sock".into());
        let (sender, receiver) = mpsc::channel();
        let _ = thread::Builder::new().spawn(move || sender.send(UnixStream::connect(path)));
        let socket = receiver.recv_timeout(Duration::from_millis(100)).ok();
        let socket = socket.and_then(Result::ok);
        Self(socket.filter(|socket| socket.set_nonblocking(true).is_ok()))
    }

    /// Reports one use of the cache. Never fails, never waits: what the daemon does not take at once is lost.
    /// `milliseconds` is the time that a hit saved, 0 on a miss.
    fn emit(&mut self, session: &str, event: &str, source: &str, hash: &str, milliseconds: u64) {
        let line = format!(
            r#"{{"sessionId":"{session}","source":"{source}","event":"{event}","hash":"{hash}","duration":{milliseconds}}}"#
        ) + "\n";
        for _ in 0..2 {
            // A short line is taken whole or not at all.
            match self.0.as_mut().map(|socket| socket.write(line.as_bytes())) {
                Some(Err(error)) if error.kind() != WouldBlock => *self = Self::connect(), // it was restarted
                _ => return,
            }
        }
    }
}

fn main() {
    let args: Vec<String> = env::args().collect();
    if let [_, session, event, source, hash, milliseconds] = &args[..] {
        Events::connect().emit(session, event, source, hash, milliseconds.parse().unwrap_or(0));
    }
}
