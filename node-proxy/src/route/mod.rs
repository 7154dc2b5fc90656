//! Which rule, backends and filters a request gets, as the Gateway API says. Pure.

use std::sync::Arc;
use weft_proto::identity::NamespacedName;
use weft_proto::model::HttpRoute;

/// The routes of one Service, in order of precedence, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    _private: (),
}

impl RouteTable {
    /// `routes`: those with `service` as a parent.
    pub fn compile(_service: &NamespacedName, _routes: &[Arc<HttpRoute>]) -> Self {
        todo!()
    }
}
