// Stage `service`: protected destination, protocol and port give the service id, counted per
// packet class. Its place in the
// pipeline is fixed here; it has no tables yet and passes everything.
control Service(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}
