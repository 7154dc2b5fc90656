//! The echo application for tests, server and clients in one binary; `weft-echo --help` tells all.

use clap::{Parser, Subcommand};
use weft_e2e::echo::{self, grpc, load, pace, stream, websocket};

#[derive(Parser)]
#[command(
    version,
    about = "An application for testing a mesh: it answers with what it saw, and misbehaves on request"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP/1.1, h2c, gRPC, WebSocket, HTTPS and raw TCP
    Serve(echo::Settings),
    /// Make HTTP requests and print how they went
    Load(load::Settings),
    /// Make HTTP requests at a fixed rate and print their latencies, each from when it was due
    Pace(pace::Settings),
    /// Make gRPC calls of all four kinds and print how they went
    Grpc(grpc::ClientSettings),
    /// Check one promise of a TCP stream
    Tcp(stream::Settings),
    /// Exchange WebSocket messages
    Websocket(websocket::Settings),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let told = match Arguments::parse().command {
        Command::Serve(settings) => return echo::Server::new(settings).run().await,
        Command::Load(settings) => load::run(settings).await?,
        Command::Pace(settings) => pace::run(&settings)?,
        Command::Grpc(settings) => grpc::client(&settings).await?,
        Command::Tcp(settings) => stream::run(&settings).await?,
        Command::Websocket(settings) => websocket::client(&settings).await?,
    };
    println!("{told}");
    Ok(())
}
