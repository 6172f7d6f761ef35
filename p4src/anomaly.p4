// Stage `anomaly`: what the parser found wrong, and the fixed rules about
// shapes that are never forwarded. ARP and neighbour discovery leave here for
// the CPU, because the rules about scope would drop them. The rules that an
// operator can switch have their place behind the fixed ones.
control Anomaly(inout headers_t hdr, inout metadata_t meta) {
    action drop(Reason reason) {
        meta.disposition = Disposition.DROP;
        meta.reason = reason;
    }

    apply {
        if (meta.anomaly != Reason.NONE) {
            drop(meta.anomaly);
        } else if (meta.inner_anomaly != Reason.NONE) {
            drop(meta.inner_anomaly);
        } else if (meta.arp == 1 || (meta.neighbour == 1 && meta.tagged == 0)) {
            if (meta.port_flags & PORT_TRANSPARENT != 0) {
                meta.raw = 1;
            } else {
                meta.disposition = Disposition.HOLD;
                meta.reason = Reason.TO_ME;
            }
        } else if (meta.tag_anomaly != Reason.NONE) {
            drop(meta.tag_anomaly);
        } else if (meta.returned == 0) {
            if (meta.bad_checksum == 1) {
                drop(Reason.BAD_CHECKSUM);
            } else if (meta.source_route == 1) {
                drop(Reason.SOURCE_ROUTE);
            } else if (meta.unreadable == 1) {
                drop(Reason.UNREADABLE_CHAIN);
            } else if (meta.family == 4) {
                bit<8> s = hdr.ipv4.src[31:24];
                bit<8> d = hdr.ipv4.dst[31:24];
                if (hdr.ipv4.src[31:16] == 0xa9fe || hdr.ipv4.dst[31:16] == 0xa9fe ||
                    s[7:4] == 14 || d[7:4] == 14 ||
                    hdr.ipv4.src == 0xffffffff || hdr.ipv4.dst == 0xffffffff) {
                    drop(Reason.LINK_SCOPE);
                } else if (s == 0 || s == 127 || s[7:4] == 15 ||
                           d == 0 || d == 127 || d[7:4] == 15) {
                    drop(Reason.MARTIAN);
                }
            } else {
                if (meta.neighbour == 1 ||
                    hdr.ipv6.src[127:118] == 0x3fa || hdr.ipv6.dst[127:118] == 0x3fa ||
                    hdr.ipv6.src[127:120] == 0xff || hdr.ipv6.dst[127:120] == 0xff) {
                    drop(Reason.LINK_SCOPE);
                } else if (hdr.ipv6.src[127:1] == 0 || hdr.ipv6.dst[127:1] == 0 ||
                           hdr.ipv6.src[127:32] == 0xffff || hdr.ipv6.dst[127:32] == 0xffff) {
                    drop(Reason.MARTIAN);
                }
            }
        }
    }
}
