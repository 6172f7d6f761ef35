// Stage `anomaly`: what the parser found wrong, and the fixed rules about
// shapes that are never forwarded. ARP and neighbour discovery leave here for
// the CPU, because the rules about scope would drop them. The rules that an
// operator can switch have their place behind the fixed ones.
control Anomaly(inout headers_t hdr, inout metadata_t meta) {
    action drop(Reason reason) {
        meta.disposition = Disposition.DROP;
        meta.reason = reason;
    }

    action hold_for_cpu() {
        meta.disposition = Disposition.HOLD;
        meta.reason = Reason.TO_ME;
    }

    action forward_raw() {
        meta.raw = 1;
    }

// Few packets have one of these, so that two questions are one for the others.
#define ODD_IPV4(a) a < 0x01000000 || a >= 0xe0000000 || a[31:24] == 127 || a[31:16] == 0xa9fe
#define LINK_SCOPE_IPV4(a) a[31:16] == 0xa9fe || a[31:28] == 14 || a == 0xffffffff
#define LINK_SCOPE_IPV6(a) a[127:118] == 0x3fa || a[127:120] == 0xff
#define MARTIAN_IPV6(a) a[127:1] == 0 || a[127:32] == 0xffff

    apply {
        if (meta.anomaly != Reason.NONE) {
            drop(meta.anomaly);
        } else if (meta.arp == 1 || (meta.neighbour == 1 && meta.tagged == 0)) {
            if (meta.port_flags & PORT_TRANSPARENT != 0) {
                forward_raw();
            } else {
                hold_for_cpu();
            }
        } else if (meta.returned == 0) {
            if (meta.bad_checksum == 1) {
                drop(Reason.BAD_CHECKSUM);
            } else if (meta.source_route == 1) {
                drop(Reason.SOURCE_ROUTE);
            } else if (meta.unreadable == 1) {
                drop(Reason.UNREADABLE_CHAIN);
            } else if (meta.family == 4) {
                if (ODD_IPV4(hdr.ipv4.src) || ODD_IPV4(hdr.ipv4.dst)) {
                    if (LINK_SCOPE_IPV4(hdr.ipv4.src) || LINK_SCOPE_IPV4(hdr.ipv4.dst)) {
                        drop(Reason.LINK_SCOPE);
                    } else {
                        drop(Reason.MARTIAN);
                    }
                }
            } else {
                if (meta.neighbour == 1 || LINK_SCOPE_IPV6(hdr.ipv6.src) || LINK_SCOPE_IPV6(hdr.ipv6.dst)) {
                    drop(Reason.LINK_SCOPE);
                } else if (MARTIAN_IPV6(hdr.ipv6.src) || MARTIAN_IPV6(hdr.ipv6.dst)) {
                    drop(Reason.MARTIAN);
                }
            }
        }
    }
}
