//! The only public door: REST, live streams, OpenAPI, limits and the errors people see.
