// Stage `mss`: the MSS of SYN and SYN-ACK that leave by a trunk is lowered to
// what fits behind the tag (RFC 6691). Only an MSS that is the first option is
// seen, which is where common stacks put it; RFC 1624 mends the checksum.
control Mss(inout headers_t hdr, inout metadata_t meta, inout bit<1> clamped) {
    bit<16> most = 0;

    action most_behind_ipv4() {
        most = meta.mtu - 40 - ((bit<16>)hdr.own_tag.length << 2);
    }

    action most_behind_ipv6() {
        most = meta.mtu - 60 - ((bit<16>)hdr.own_tag.length << 2);
    }

    action most_behind_udp() {
        most = most - 8;
    }

    action clamp() {
        bit<32> sum = (bit<32>)(~hdr.tcp.checksum) + (bit<32>)(~hdr.tcp_mss.value) + (bit<32>)most;
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        hdr.tcp.checksum = ~sum[15:0];
        hdr.tcp_mss.value = most;
        clamped = 1;
    }

    apply {
        // No trunk's MTU is below 576, so that nothing wraps (docs/wire.md).
        if (hdr.tcp_mss.isValid() && hdr.own_tag.isValid() && meta.out_role == Role.TRUNK &&
            meta.protocol == PROTO_TCP && meta.kind == 0 && meta.tcp_flags & TCP_SYN != 0 && meta.mtu >= 576) {
            if (meta.family == 4) {
                most_behind_ipv4();
            } else {
                most_behind_ipv6();
            }
            if (hdr.own_udp.isValid()) {
                most_behind_udp();
            }
            if (hdr.tcp_mss.value > most) {
                clamp();
            }
        }
    }
}
