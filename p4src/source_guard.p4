// Stage `source_guard`: zone or port and source prefix decide: ingress and egress filtering, and
// route-based filtering by port. Its place in the
// pipeline is fixed here; it has no tables yet and passes everything.
control SourceGuard(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}
