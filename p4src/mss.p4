// Stage `mss`: the MSS of SYN and SYN-ACK that leave by a trunk is lowered to
// what fits behind the tag (RFC 6691). Only an MSS that is the first option is
// seen, which is where common stacks put it; RFC 1624 mends the checksum.
control Mss(inout headers_t hdr, inout metadata_t meta) {
    action clamp(bit<16> most) {
        bit<32> sum = (bit<32>)(~hdr.tcp.checksum) + (bit<32>)(~hdr.tcp_mss.value) + (bit<32>)most;
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        hdr.tcp.checksum = ~sum[15:0];
        hdr.tcp_mss.value = most;
        meta.count_mss = 1;
    }

    apply {
        bit<16> overhead = meta.new_tag_len + 40;
        if (meta.family == 6) {
            overhead = overhead + 20;
        }
        if (hdr.tcp_mss.isValid() && meta.protocol == PROTO_TCP && meta.kind == 0 &&
            meta.tcp_flags & TCP_SYN != 0 && meta.mtu > overhead) {
            bit<16> most = meta.mtu - overhead;
            if (hdr.tcp_mss.value > most) {
                clamp(most);
            }
        }
    }
}
