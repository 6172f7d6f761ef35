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

    // The candidate is not the alliance's carrier: an ordinary packet.
    action not_the_carrier() {
        meta.inner_anomaly = Reason.NONE;
        meta.tag_anomaly = Reason.NONE;
        meta.carrier_seen = 0;
        meta.carrier_misplaced = 0;
        meta.carrier_quoted = 0;
        meta.icmp_error = 0;
        meta.neighbour = 0;
        meta.unreadable = 0;
        meta.tcp_flags = 0;
        meta.kind = 0;
        meta.src_port = 0;
        meta.dst_port = 0;
    }

    action drop(Reason reason) {
        meta.disposition = Disposition.DROP;
        meta.reason = reason;
    }

    action sort_ipv4_src_low() {
        meta.src_is_low = 1;
        meta.low = hdr.ipv4.src;
        meta.high = hdr.ipv4.dst;
    }

    action sort_ipv4_dst_low() {
        meta.low = hdr.ipv4.dst;
        meta.high = hdr.ipv4.src;
    }

    action sort_ipv6_src_low() {
        meta.src_is_low = 1;
        meta.low6 = hdr.ipv6.src;
        meta.high6 = hdr.ipv6.dst;
    }

    action sort_ipv6_dst_low() {
        meta.low6 = hdr.ipv6.dst;
        meta.high6 = hdr.ipv6.src;
    }

    action ports_as_they_are() {
        meta.low_port = meta.src_port;
        meta.high_port = meta.dst_port;
    }

    action ports_swapped() {
        meta.low_port = meta.dst_port;
        meta.high_port = meta.src_port;
    }

    apply {
        port.apply();
        if (meta.disposition == Disposition.FORWARD && meta.anomaly == Reason.NONE && meta.arp == 0) {
            bit<2> carrier = 1;
            if (meta.port_flags & PORT_CARRIER_UDP != 0) {
                carrier = 2;
            }
            if (meta.carrier_seen != 0 && meta.carrier_seen != carrier) {
                bit<2> seen = meta.carrier_seen;
                not_the_carrier();
                if (meta.family == 6) {
                    meta.source_route = 0;
                }
                if (seen == 1) {
                    meta.protocol = PROTO_TAG;
                } else {
                    meta.protocol = PROTO_UDP;
                    meta.src_port = hdr.tag_udp.src_port;
                    meta.dst_port = hdr.tag_udp.dst_port;
                }
            }
            if (meta.carrier_seen != 0) {
                meta.tagged = 1;
            }
            if (meta.carrier_fragmented != 0 && meta.carrier_fragmented == carrier) {
                meta.tag_anomaly = Reason.TAG_FRAGMENTED;
                meta.tagged = 1;
            } else if (meta.carrier_misplaced != 0 && meta.carrier_misplaced == carrier &&
                       meta.tag_anomaly == Reason.NONE) {
                meta.tag_anomaly = Reason.TAG_MISPLACED;
            }
            if (meta.carrier_quoted != carrier) {
                meta.carrier_quoted = 0;
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
            if (meta.src_is_low == 1 || meta.kind == 2) {
                ports_as_they_are();
            } else {
                ports_swapped();
            }

            // Step 0 of verifying.
            if (meta.inner_anomaly == Reason.NONE) {
                if (meta.tagged == 1) {
                    if (meta.role == Role.EDGE) {
                        drop(Reason.TAG_ON_EDGE);
                    } else if (meta.tag_anomaly == Reason.NONE) {
                        if (meta.role == Role.ECHO && hdr.tag.flags == 0) {
                            drop(Reason.TAG_ON_EDGE);
                        } else if (meta.role == Role.TRUNK && hdr.tag.flags != 0) {
                            drop(Reason.TAG_MALFORMED);
                        }
                    }
                } else if (meta.role == Role.TRUNK && meta.neighbour == 0 &&
                           meta.carrier_quoted == 0 && meta.tag_anomaly == Reason.NONE &&
                           meta.port_flags & PORT_ALLOW_UNTAGGED == 0) {
                    drop(Reason.UNTAGGED_ON_TRUNK);
                }
            }
        }
    }
}
