// Stage `session`: an untagged packet of an admitted session, either
// direction. The entry names the zone each direction may come from: that of
// packets from the low end, and from the high end.
control Session(inout headers_t hdr, inout metadata_t meta, inout bit<1> admitted_session) {
    @id(0x13000601)
    direct_counter(CounterType.packets_and_bytes) session_v4_counter;
    @id(0x13000602)
    direct_counter(CounterType.packets_and_bytes) session_v6_counter;

    zone_t from_low = 0;
    zone_t from_high = 0;

    @id(0x01000601)
    action admitted_v4(@id(1) zone_t low_zone, @id(2) zone_t high_zone) {
        session_v4_counter.count();
        admitted_session = 1;
        from_low = low_zone;
        from_high = high_zone;
    }

    @id(0x01000602)
    action admitted_v6(@id(1) zone_t low_zone, @id(2) zone_t high_zone) {
        session_v6_counter.count();
        admitted_session = 1;
        from_low = low_zone;
        from_high = high_zone;
    }

    @id(0x01000603)
    action no_session_v4() { }

    @id(0x01000604)
    action no_session_v6() { }

    @id(0x02000601)
    table session_v4 {
        key = {
            meta.low : exact @name("low") @id(1);
            meta.high : exact @name("high") @id(2);
            SESSION_KEY
        }
        actions = { admitted_v4; @defaultonly no_session_v4; }
        const default_action = no_session_v4();
        counters = session_v4_counter;
        size = SESSION_SIZE;
        support_timeout = true;
    }

    @id(0x02000602)
    table session_v6 {
        key = {
            meta.low6 : exact @name("low") @id(1);
            meta.high6 : exact @name("high") @id(2);
            SESSION_KEY
        }
        actions = { admitted_v6; @defaultonly no_session_v6; }
        const default_action = no_session_v6();
        counters = session_v6_counter;
        size = SESSION_SIZE;
        support_timeout = true;
    }

    apply {
        if (meta.icmp_error == 1 && meta.returned == 0) {
            // Judged by the session of the packet it quotes, by the CPU.
            meta.disposition = Disposition.HOLD;
            meta.reason = Reason.ICMP_ERROR;
        } else {
            if (meta.family == 4) {
                session_v4.apply();
            } else {
                session_v6.apply();
            }
            if (admitted_session == 1) {
                if ((meta.src_is_low == 1 && from_low != meta.zone && from_low != ZONE_ANY) ||
                    (meta.src_is_low == 0 && from_high != meta.zone && from_high != ZONE_ANY)) {
                    meta.disposition = Disposition.DROP;
                    meta.reason = Reason.WRONG_ZONE;
                } else if (meta.tcp_flags & (TCP_FIN | TCP_RST) != 0 ||
                           meta.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK) {
                    meta.copy = Reason.TCP_FLAGS;
                }
            } else if (meta.kind == 2) {
                meta.disposition = Disposition.HOLD;
                meta.reason = Reason.FRAGMENT;
            }
        }
    }
}
