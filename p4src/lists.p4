// Stage `lists`: `blocklist` and `allowlist`: source prefixes; they bind tagged packets too. Its place in the
// pipeline is fixed here; it has no tables yet and passes everything.
control Lists(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}
