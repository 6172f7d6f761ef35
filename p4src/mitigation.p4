// Stage `mitigation`: service id and class give what the defence does while it is on. Its place in the
// pipeline is fixed here; it has no tables yet and passes everything.
control Mitigation(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}
