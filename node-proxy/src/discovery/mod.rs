//! The client of the control plane's stream: receives deltas, validates, makes snapshots, answers ACK or NACK.
