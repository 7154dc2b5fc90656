//! Which rule, backends and filters a request gets, as the Gateway API says. Pure.

use std::sync::Arc;
use weft_proto::model::HttpRoute;

/// The routes of one Service, in order of precedence, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    _private: (),
}

impl RouteTable {
    /// `routes`: those with this Service as a parent.
    pub fn compile(_routes: &[Arc<HttpRoute>]) -> Self {
        todo!()
    }
}
