// Stage `port`: ingress port and VLAN give the role and the zone. Here it is
// settled whether the packet is tagged (the alliance's carrier is a flag of
// the port), the five-tuple is sorted, and step 0 of verifying says what may
// appear on a port of this role.
control Port(inout headers_t hdr, inout metadata_t meta) {
    @id(0x01000101)
    action port_config(@id(1) Role role, @id(2) zone_t zone, @id(3) bit<8> flags) {
        meta.role = role;
        meta.zone = zone;
        meta.port_flags = flags;
    }

    @id(0x01000102)
    action unknown_port() {
        meta.disposition = Disposition.DROP;
        meta.reason = Reason.UNKNOWN_PORT;
    }

    @id(0x02000101)
    table port {
        key = {
            meta.in_port : exact @name("in_port") @id(1);
            meta.vlan : exact @name("vlan") @id(2);
        }
        actions = { port_config; @defaultonly unknown_port; }
        const default_action = unknown_port();
        size = PORT_SIZE;
    }

    // The candidate is not the alliance's carrier: an ordinary packet, of
    // which nothing behind the carrier was to be read.
    action not_the_carrier(bit<8> protocol) {
        meta.protocol = protocol;
        meta.anomaly = Reason.NONE;
        meta.carrier = 0;
        meta.icmp_error = 0;
        meta.neighbour = 0;
        meta.unreadable = (bit<1>)(protocol == PROTO_TAG);   // no tag can stand before it
        meta.source_route = meta.source_route & (bit<1>)(meta.family == 4);
        meta.tcp_flags = 0;
        meta.kind = 0;
        meta.src_port = 0;
        meta.dst_port = 0;
    }

    action ports_of_outer_udp() {
        meta.src_port = hdr.outer_udp.src_port;
        meta.dst_port = hdr.outer_udp.dst_port;
    }

    action anomalous(Reason reason) {
        meta.anomaly = reason;
    }

    action drop(Reason reason) {
        meta.disposition = Disposition.DROP;
        meta.reason = reason;
    }

    action sort_ipv4_src_low() {
        meta.src_is_low = 1;
        meta.low = hdr.ipv4.src;
        meta.high = hdr.ipv4.dst;
        meta.low_port = meta.src_port;
        meta.high_port = meta.dst_port;
    }

    action sort_ipv4_dst_low() {
        meta.low = hdr.ipv4.dst;
        meta.high = hdr.ipv4.src;
        meta.low_port = meta.dst_port;
        meta.high_port = meta.src_port;
    }

    action sort_ipv6_src_low() {
        meta.src_is_low = 1;
        meta.low6 = hdr.ipv6.src;
        meta.high6 = hdr.ipv6.dst;
        meta.low_port = meta.src_port;
        meta.high_port = meta.dst_port;
    }

    action sort_ipv6_dst_low() {
        meta.low6 = hdr.ipv6.dst;
        meta.high6 = hdr.ipv6.src;
        meta.low_port = meta.dst_port;
        meta.high_port = meta.src_port;
    }

    // An identification is not moved by sorting.
    action identification_stays() {
        meta.low_port = meta.src_port;
        meta.high_port = meta.dst_port;
    }

    action words_ipv4() {
        meta.sip.w2 = meta.protocol ++ meta.family ++ meta.kind ++ meta.low_port ++ meta.high_port;
        meta.sip.w3 = meta.low ++ meta.high;
    }

    action words_ipv6() {
        meta.sip.w2 = meta.protocol ++ meta.family ++ meta.kind ++ meta.low_port ++ meta.high_port;
    }

    action only_carrier_ip() {
        meta.carrier = meta.carrier & FOUND_BY_IP;
    }

    action only_carrier_udp() {
        meta.carrier = meta.carrier & FOUND_BY_UDP;
    }

    action has_tag() {
        meta.tagged = 1;
    }

    apply {
        // Up to the IP header nothing is known where parsing ended.
        if (port.apply().hit && meta.family != 0) {
            if (meta.port_flags & PORT_CARRIER_UDP == 0) {
                if (meta.carrier & FOUND_IN_PLACE & FOUND_BY_UDP != 0) {
                    not_the_carrier(PROTO_UDP);
                    ports_of_outer_udp();
                }
                only_carrier_ip();
            } else {
                if (meta.carrier & FOUND_IN_PLACE & FOUND_BY_IP != 0) {
                    not_the_carrier(PROTO_TAG);
                }
                only_carrier_udp();
            }
            if (meta.carrier & (FOUND_IN_PLACE | FOUND_FRAGMENTED) != 0) {
                has_tag();
            }
            if (meta.carrier & FOUND_FRAGMENTED != 0) {
                anomalous(Reason.TAG_FRAGMENTED);
            }
            if (meta.carrier & FOUND_MISPLACED != 0) {
                anomalous(Reason.TAG_MISPLACED);
            }

            // Sorting: the lower address is low; where they are equal, the lower port.
            if (meta.family == 4) {
                if (hdr.ipv4.src < hdr.ipv4.dst ||
                    (hdr.ipv4.src == hdr.ipv4.dst && meta.src_port <= meta.dst_port)) {
                    sort_ipv4_src_low();
                } else {
                    sort_ipv4_dst_low();
                }
            } else {
                if (hdr.ipv6.src < hdr.ipv6.dst ||
                    (hdr.ipv6.src == hdr.ipv6.dst && meta.src_port <= meta.dst_port)) {
                    sort_ipv6_src_low();
                } else {
                    sort_ipv6_dst_low();
                }
            }
            if (meta.kind == 2) {
                identification_stays();
            }
            if (meta.family == 4) {
                words_ipv4();
            } else {
                words_ipv6();
            }

            // Step 0 of verifying.
            if (meta.anomaly != Reason.L4_TRUNCATED) {
                if (meta.tagged == 1) {
                    if (meta.role == Role.EDGE) {
                        drop(Reason.TAG_ON_EDGE);
                    } else if (meta.anomaly == Reason.NONE) {
                        if (meta.role == Role.ECHO && hdr.tag.flags == 0) {
                            drop(Reason.TAG_ON_EDGE);
                        } else if (meta.role == Role.TRUNK && hdr.tag.flags != 0) {
                            drop(Reason.TAG_MALFORMED);
                        }
                    }
                } else if (meta.role == Role.TRUNK && meta.neighbour == 0 &&
                           meta.carrier & FOUND_QUOTED == 0 && meta.anomaly == Reason.NONE &&
                           meta.port_flags & PORT_ALLOW_UNTAGGED == 0) {
                    drop(Reason.UNTAGGED_ON_TRUNK);
                }
            }
        }
    }
}
