// Countersign's data plane for v1model.
//
//   parse ─► port ─► anomaly ─► source_guard ─► lists ─► service ─► mitigation
//                                                                       │
//            ┌──────────────────────────── tagged ◄─────────────────────┤
//            ▼                                                          │ untagged
//       issuer_key ─► vouched ─► replay ─► egress_port ◄────────────────┘
//                                               │
//                     leaves by edge, tagged ┌──┴──┐ untagged
//                                   delivered      session
//                                            └──┬──┘
//                                            policy ─► own_tag ─► punt
//                                                                   │
//        port ◄── deparse ◄── mss, egress (tag on, over or off) ◄───┤
//        CPU  ◄── packet_in: held, or a copy ◄──────────────────────┘
//
// A stage is a control in a file of its own and reads and writes only headers
// and metadata_t; what is particular to v1model (packet paths, counters,
// checksums) is in this file. docs/pipeline.md describes stages, keys and
// reasons.
#include <core.p4>
#include <v1model.p4>

#include "sizes.p4"
#include "types.p4"
#include "parser.p4"
#include "siphash.p4"
#include "port.p4"
#include "anomaly.p4"
#include "source_guard.p4"
#include "lists.p4"
#include "service.p4"
#include "mitigation.p4"
#include "issuer_key.p4"
#include "vouched.p4"
#include "replay.p4"
#include "egress_port.p4"
#include "delivered.p4"
#include "session.p4"
#include "policy.p4"
#include "own_tag.p4"
#include "punt.p4"
#include "mss.p4"
#include "rewrite.p4"

#define IPV4_CHECKSUM_FIELDS { hdr.ipv4.version, hdr.ipv4.ihl, hdr.ipv4.tos, \
    hdr.ipv4.total_len, hdr.ipv4.id, hdr.ipv4.reserved, hdr.ipv4.df, hdr.ipv4.mf, \
    hdr.ipv4.frag_offset, hdr.ipv4.ttl, hdr.ipv4.protocol, hdr.ipv4.src, hdr.ipv4.dst, \
    hdr.ipv4_options[0].value, hdr.ipv4_options[1].value, hdr.ipv4_options[2].value, \
    hdr.ipv4_options[3].value, hdr.ipv4_options[4].value, hdr.ipv4_options[5].value, \
    hdr.ipv4_options[6].value, hdr.ipv4_options[7].value, hdr.ipv4_options[8].value, \
    hdr.ipv4_options[9].value }

control CheckIPv4(inout headers_t hdr, inout metadata_t meta) {
    apply {
        verify_checksum(hdr.ipv4.isValid(), IPV4_CHECKSUM_FIELDS, hdr.ipv4.checksum,
                        HashAlgorithm.csum16);
    }
}

control CountersignIngress(inout headers_t hdr, inout metadata_t meta,
                inout standard_metadata_t standard_metadata) {
    // Indexed by port, Reason and Outcome.
    @id(0x12000101)
    counter(PORT_COUNT, CounterType.packets_and_bytes) port_rx;
    @id(0x12000102)
    counter(PORT_COUNT, CounterType.packets) port_tx;
    @id(0x12000103)
    counter(REASON_COUNT, CounterType.packets) drops;
    @id(0x12000104)
    counter(REASON_COUNT, CounterType.packets) punts;
    @id(0x12000105)
    counter(OUTCOME_COUNT, CounterType.packets) outcomes;

    @name("port") Port() port;
    @name("anomaly") Anomaly() anomaly;
    @name("source_guard") SourceGuard() source_guard;
    @name("lists") Lists() lists;
    @name("service") Service() service;
    @name("mitigation") Mitigation() mitigation;
    @name("issuer_key") IssuerKey() issuer_key;
    @name("vouched") Vouched() vouched;
    @name("replay") Replay() replay;
    @name("egress_port") EgressPort() egress_port;
    @name("delivered") Delivered() delivered;
    @name("session") Session() session;
    @name("policy") Policy() policy;
    @name("own_tag") OwnTag() own_tag;
    @name("punt") Punt() punt;

    @name("mss") Mss() mss;

    bit<1> admitted_session = 0;
    bit<1> copy_now = 0;
    bit<1> clamped = 0;

    action anomalous(Reason reason) {
        meta.anomaly = reason;
    }

    action bad_checksum() {
        meta.bad_checksum = 1;
    }

    action send_by_cpu() {
        meta.disposition = Disposition.SEND;
        meta.out_port = hdr.packet_out.egress_port;
        hdr.packet_out.setInvalid();
    }

    action count_outcome(Outcome outcome) {
        outcomes.count((bit<32>)(bit<8>)outcome);
    }

    action bad_packet_out() {
        meta.disposition = Disposition.DROP;
        meta.reason = Reason.BAD_PACKET_OUT;
    }

    apply {
        if (standard_metadata.checksum_error == 1) {
            bad_checksum();
        }
        if (standard_metadata.parser_error != error.NoError) {
            if (standard_metadata.parser_error == error.VLANStacked) {
                anomalous(Reason.VLAN_STACKED);
            } else if (standard_metadata.parser_error == error.NotIP) {
                anomalous(Reason.NOT_IP);
            } else if (standard_metadata.parser_error == error.IPVersion) {
                anomalous(Reason.IP_VERSION);
            } else if (standard_metadata.parser_error == error.BadLength) {
                anomalous(Reason.BAD_LENGTH);
            } else if (standard_metadata.parser_error == error.BadOptions) {
                anomalous(Reason.BAD_OPTIONS);
            } else if (standard_metadata.parser_error == error.Jumbogram) {
                anomalous(Reason.JUMBOGRAM);
            } else if (standard_metadata.parser_error == error.L4Truncated) {
                anomalous(Reason.L4_TRUNCATED);
            } else if (standard_metadata.parser_error == error.TagMalformed) {
                anomalous(Reason.TAG_MALFORMED);
            } else {
                anomalous(Reason.TRUNCATED);
            }
        }

        if (hdr.packet_out.isValid() && hdr.packet_out.mode == PacketOutMode.SEND) {
            send_by_cpu();
        } else if (standard_metadata.ingress_port == CPU_PORT && meta.returned == 0) {
            bad_packet_out();
        } else {
            if (meta.returned == 1) {
                hdr.packet_out.setInvalid();
                count_outcome(Outcome.RETURNED);
            } else {
                port_rx.count((bit<32>)meta.in_port);
            }

            port.apply(hdr, meta);
            if (meta.disposition == Disposition.FORWARD) {
                anomaly.apply(hdr, meta);
            }
            if (meta.disposition == Disposition.FORWARD && meta.returned == 0) {
                source_guard.apply(hdr, meta);
                lists.apply(hdr, meta);
                service.apply(hdr, meta);
                mitigation.apply(hdr, meta);
            }
            if (meta.disposition == Disposition.FORWARD && meta.tagged == 1) {
                issuer_key.apply(hdr, meta);
                if (meta.disposition == Disposition.FORWARD) {
                    if (meta.verified == 0) {
                        vouched.apply(hdr, meta);
                    } else {
                        replay.apply(hdr, meta);
                    }
                }
            }
            if (meta.disposition == Disposition.FORWARD) {
                if (meta.verified == 1) {
                    if (hdr.tag.suite == 1) {
                        count_outcome(Outcome.VERIFIED_SIPHASH);
                    } else if (hdr.tag.suite == 2) {
                        count_outcome(Outcome.VERIFIED_ED25519);
                    } else {
                        count_outcome(Outcome.VERIFIED_RSA2048);
                    }
                }
                egress_port.apply(hdr, meta);
            }
            if (meta.disposition == Disposition.FORWARD && meta.raw == 0) {
                if (meta.tagged == 0) {
                    session.apply(hdr, meta, admitted_session);
                } else if (meta.out_role == Role.EDGE) {
                    delivered.apply(hdr, meta);
                }
                if (meta.disposition == Disposition.FORWARD && admitted_session == 0) {
                    policy.apply(hdr, meta);
                }
                if (meta.disposition == Disposition.FORWARD) {
                    own_tag.apply(hdr, meta);
                }
            }
            punt.apply(hdr, meta, copy_now);
            if (meta.disposition == Disposition.FORWARD) {
                mss.apply(hdr, meta, clamped);
                if (clamped == 1) {
                    count_outcome(Outcome.MSS_CLAMPED);
                }
            }
        }

        if (meta.disposition == Disposition.DROP) {
            drops.count((bit<32>)(bit<8>)meta.reason);
            mark_to_drop(standard_metadata);
        } else if (meta.disposition == Disposition.HOLD) {
            punts.count((bit<32>)(bit<8>)meta.punt_reason);
            standard_metadata.egress_spec = CPU_PORT;
        } else {
            port_tx.count((bit<32>)meta.out_port);
            if (meta.disposition == Disposition.SEND) {
                count_outcome(Outcome.SENT_BY_CPU);
            } else if (hdr.own_tag.isValid()) {
                if (meta.tagged == 1) {
                    count_outcome(Outcome.RETAGGED);
                } else {
                    count_outcome(Outcome.TAGGED);
                }
            } else if (meta.tagged == 1) {
                count_outcome(Outcome.STRIPPED);
            } else {
                count_outcome(Outcome.FORWARDED_PLAIN);
            }
            standard_metadata.egress_spec = (bit<9>)meta.out_port;
        }
        if (copy_now == 1) {
            punts.count((bit<32>)(bit<8>)meta.punt_reason);
            clone_preserving_field_list(CloneType.I2E, CPU_CLONE_SESSION, 1);
        }
    }
}

control CountersignEgress(inout headers_t hdr, inout metadata_t meta,
               inout standard_metadata_t standard_metadata) {
    @name("rewrite") Rewrite() rewrite;

    action to_cpu() {
        hdr.packet_in.setValid();
        hdr.packet_in.reason = meta.punt_reason;
        hdr.packet_in.role = meta.role;
        hdr.packet_in.ingress_port = meta.in_port;
        hdr.packet_in.zone = meta.zone;
        hdr.packet_in.egress_port = meta.out_port;
        hdr.packet_in.egress_zone = meta.out_zone;
    }

    // Bytes behind the IP packet's end are not sent on.
    action cut(bit<32> l2) {
        truncate(l2 + meta.out_len);
    }

    apply {
        if (standard_metadata.egress_port == CPU_PORT) {
            to_cpu();
        } else if (meta.disposition == Disposition.FORWARD && meta.raw == 0) {
            rewrite.apply(hdr, meta);
            if (hdr.vlan.isValid()) {
                cut(18);
            } else {
                cut(14);
            }
        }
    }
}

control MendIPv4(inout headers_t hdr, inout metadata_t meta) {
    apply {
        update_checksum(hdr.ipv4.isValid() && meta.disposition == Disposition.FORWARD,
                        IPV4_CHECKSUM_FIELDS, hdr.ipv4.checksum, HashAlgorithm.csum16);
    }
}

control CountersignDeparser(packet_out packet, in headers_t hdr) {
    apply {
        packet.emit(hdr.packet_in);
        packet.emit(hdr.ethernet);
        packet.emit(hdr.vlan);
        packet.emit(hdr.ipv4);
        packet.emit(hdr.ipv4_options);
        packet.emit(hdr.ipv6);
        packet.emit(hdr.hop_by_hop);
        packet.emit(hdr.own_udp);
        packet.emit(hdr.own_tag);
        packet.emit(hdr.own_sealed_64);
        packet.emit(hdr.own_sealed_256);
        packet.emit(hdr.outer_udp);
        packet.emit(hdr.tag);
        packet.emit(hdr.sealed_64);
        packet.emit(hdr.sealed_256);
        packet.emit(hdr.fragment);
        packet.emit(hdr.tcp);
        packet.emit(hdr.tcp_mss);
        packet.emit(hdr.udp);
        packet.emit(hdr.ports);
        packet.emit(hdr.icmp);
    }
}

V1Switch(CountersignParser(), CheckIPv4(), CountersignIngress(), CountersignEgress(), MendIPv4(),
         CountersignDeparser()) main;
