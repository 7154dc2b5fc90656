//! What the balancers and the upstream pools show under `/metrics`, looked up at each scrape.

use std::sync::Arc;
use std::time::Instant;

use crate::node::Node;
use crate::telemetry::metrics::{names, to_f64};

/// Once per node.
pub fn register(node: &Arc<Node>) {
    // Held weakly: telemetry is part of the node.
    let node_of_scrape = Arc::downgrade(node);
    node.telemetry.collector(move |samples| {
        let Some(node) = node_of_scrape.upgrade() else { return };
        let (balancers, totals) = (&node.balancers, node.balancers.totals());
        samples.put(&names::RETRY_BUDGET_SPENT, &[], to_f64(totals.budget_spent()));
        samples.put(&names::EJECTIONS, &[], to_f64(totals.ejections()));
        samples.put(&names::ENDPOINTS_EJECTED, &[], to_f64(balancers.ejected(Instant::now()) as u64));
        samples.put(&names::HTTP_POOL_CONNECTIONS, &[], to_f64(node.upstreams.open()));
    });
}
