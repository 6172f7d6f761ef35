// SipHash-2-4 (Aumasson, Bernstein 2012) of M, 32 bytes for IPv4 and 56 for
// IPv6. State and words are metadata fields, and each step is an action of its
// own: as one straight line p4c substitutes expressions into each other until
// it runs for minutes. Used once to verify (ingress) and once to issue
// (egress).

#define ROTL(x, n) (((x) << n) | ((x) >> (64 - n)))

#define SIP_ROUND() \
    meta.sip.v0 = meta.sip.v0 + meta.sip.v1; \
    meta.sip.v2 = meta.sip.v2 + meta.sip.v3; \
    meta.sip.v1 = ROTL(meta.sip.v1, 13) ^ meta.sip.v0; \
    meta.sip.v3 = ROTL(meta.sip.v3, 16) ^ meta.sip.v2; \
    meta.sip.v0 = ROTL(meta.sip.v0, 32) + meta.sip.v3; \
    meta.sip.v2 = meta.sip.v2 + meta.sip.v1; \
    meta.sip.v3 = ROTL(meta.sip.v3, 21) ^ meta.sip.v0; \
    meta.sip.v1 = ROTL(meta.sip.v1, 17) ^ meta.sip.v2; \
    meta.sip.v2 = ROTL(meta.sip.v2, 32);

#define SIP_ABSORB(name, w) \
    action name() { \
        meta.sip.v3 = meta.sip.v3 ^ (w); \
        SIP_ROUND() \
        SIP_ROUND() \
        meta.sip.v0 = meta.sip.v0 ^ (w); \
    }

control SipHash(inout metadata_t meta) {
    action initialise() {
        meta.sip.v0 = meta.sip.k0 ^ 0x736f6d6570736575;
        meta.sip.v1 = meta.sip.k1 ^ 0x646f72616e646f6d;
        meta.sip.v2 = meta.sip.k0 ^ 0x6c7967656e657261;
        meta.sip.v3 = meta.sip.k1 ^ 0x7465646279746573;
        meta.sip.w2 = meta.protocol ++ meta.family ++ meta.kind ++ meta.low_port ++ meta.high_port;
        meta.sip.w3 = meta.low ++ meta.high;
    }

    SIP_ABSORB(absorb_w0, meta.sip.w0)
    SIP_ABSORB(absorb_w1, meta.sip.w1)
    SIP_ABSORB(absorb_w2, meta.sip.w2)
    SIP_ABSORB(absorb_addresses, meta.sip.w3)
    SIP_ABSORB(absorb_low_first, meta.low6[127:64])
    SIP_ABSORB(absorb_low_second, meta.low6[63:0])
    SIP_ABSORB(absorb_high_first, meta.high6[127:64])
    SIP_ABSORB(absorb_high_second, meta.high6[63:0])
    SIP_ABSORB(absorb_length_32, 64w0x2000000000000000)
    SIP_ABSORB(absorb_length_56, 64w0x3800000000000000)

    action finalise() {
        meta.sip.v2 = meta.sip.v2 ^ 0xff;
        SIP_ROUND()
        SIP_ROUND()
    }

    action finish() {
        SIP_ROUND()
        SIP_ROUND()
        meta.sip.v0 = meta.sip.v0 ^ meta.sip.v1 ^ meta.sip.v2 ^ meta.sip.v3;
    }

    // Leaves the digest in sip.v0.
    apply {
        initialise();
        absorb_w0();
        absorb_w1();
        absorb_w2();
        if (meta.family == 4) {
            absorb_addresses();
            absorb_length_32();
        } else {
            absorb_low_first();
            absorb_low_second();
            absorb_high_first();
            absorb_high_second();
            absorb_length_56();
        }
        finalise();
        finish();
    }
}
