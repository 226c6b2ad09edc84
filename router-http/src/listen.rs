//! Sockets for clients: one for each thread where the kernel shares out connections between them.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted, for each socket.
const BACKLOG: i32 = 1024;

/// Listens `count` times on an address; where its port is 0, on one that is free.
pub(crate) fn listen(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let first = socket(address)?;
    // Alone, so that a port which is taken is noticed even if whoever has it would share it.
    first.bind(&address.into())?;
    #[cfg(target_os = "linux")]
    first.set_reuse_port(true)?;
    first.listen(BACKLOG)?;
    let first = TcpListener::from(first);
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    while listeners.len() < count {
        let next = another(&listeners[0], address)?;
        listeners.push(next);
    }
    Ok(listeners)
}

#[cfg(target_os = "linux")]
fn another(_first: &TcpListener, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Elsewhere the last socket would get every connection, or none could be bound: all threads accept from one.
#[cfg(not(target_os = "linux"))]
fn another(first: &TcpListener, _address: SocketAddr) -> io::Result<TcpListener> {
    first.try_clone()
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // What lingers of an earlier process must not keep the port.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_listen_on_one_port_and_nobody_else_can() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = listen(loopback, 3).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
        assert_eq!(listen(address, 3).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
