//! The only place where sockets are made: in which namespace, with which options. A socket made elsewhere may loop.
