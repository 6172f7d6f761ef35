// Stage `policy`: an untagged packet without a session is judged by the
// operator's rules, in order of priority; what matches none is denied. A rule
// that binds tagged packets too (`deny … always`) leaves `tagged` open, every
// other one asks for 0; a tagged packet that matches none passes, because its
// issuer has admitted it.
control Policy(inout headers_t hdr, inout metadata_t meta) {
    @id(0x13000701)
    direct_counter(CounterType.packets_and_bytes) policy_v4_counter;
    @id(0x13000702)
    direct_counter(CounterType.packets_and_bytes) policy_v6_counter;

    bit<1> matched = 0;

#define POLICY_ACTIONS(v, n) \
    @id(0x010007##n##1) action admit_##v() { policy_##v##_counter.count(); matched = 1; \
        meta.disposition = Disposition.HOLD; meta.reason = Reason.NEW_SESSION; } \
    @id(0x010007##n##2) action tag_##v() { policy_##v##_counter.count(); matched = 1; } \
    @id(0x010007##n##3) action deny_##v() { policy_##v##_counter.count(); matched = 1; \
        meta.disposition = Disposition.DROP; meta.reason = Reason.POLICY_DENY; } \
    @id(0x010007##n##4) action await_##v() { policy_##v##_counter.count(); matched = 1; \
        meta.disposition = Disposition.HOLD; meta.reason = Reason.REPLY_UNKNOWN; } \
    @id(0x010007##n##5) action deny_default_##v() { }

    POLICY_ACTIONS(v4, 1)
    POLICY_ACTIONS(v6, 2)

#define POLICY_KEY(s, d) \
            meta.zone : ternary @name("in_zone") @id(1); \
            meta.out_zone : ternary @name("out_zone") @id(2); \
            s : ternary @name("src") @id(3); \
            d : ternary @name("dst") @id(4); \
            meta.protocol : ternary @name("protocol") @id(5); \
            meta.src_port : range @name("src_port") @id(6); \
            meta.dst_port : range @name("dst_port") @id(7); \
            meta.tcp_flags : ternary @name("tcp_flags") @id(8); \
            meta.kind : ternary @name("kind") @id(9); \
            meta.tagged : ternary @name("tagged") @id(10);

    @id(0x02000701)
    table policy_v4 {
        key = { POLICY_KEY(hdr.ipv4.src, hdr.ipv4.dst) }
        actions = { admit_v4; tag_v4; deny_v4; await_v4; @defaultonly deny_default_v4; }
        const default_action = deny_default_v4();
        counters = policy_v4_counter;
        size = POLICY_SIZE;
    }

    @id(0x02000702)
    table policy_v6 {
        key = { POLICY_KEY(hdr.ipv6.src, hdr.ipv6.dst) }
        actions = { admit_v6; tag_v6; deny_v6; await_v6; @defaultonly deny_default_v6; }
        const default_action = deny_default_v6();
        counters = policy_v6_counter;
        size = POLICY_SIZE;
    }

    apply {
        if (meta.family == 4) {
            policy_v4.apply();
        } else {
            policy_v6.apply();
        }
        if (matched == 0 && meta.tagged == 0) {
            meta.disposition = Disposition.DROP;
            meta.reason = Reason.POLICY_DEFAULT;
        }
    }
}
