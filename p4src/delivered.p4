// The sorted five-tuple and kind, the key of everything that is known of a
// session.
#define SESSION_KEY \
            meta.protocol : exact @name("protocol") @id(3); \
            meta.kind : exact @name("kind") @id(4); \
            meta.low_port : exact @name("low_port") @id(5); \
            meta.high_port : exact @name("high_port") @id(6);

// Stage `delivered`: a verified tag that leaves by an edge. A miss sends the
// CPU a `first_seen` copy, again for each packet until the entry stands. Only
// verified tags hit it, so that its idle timeout tells the liveness of the
// trusted direction.
control Delivered(inout headers_t hdr, inout metadata_t meta) {
    @id(0x01000501)
    action delivered() { }

    @id(0x01000502)
    action first_seen() {
        meta.copy = Reason.FIRST_SEEN;
    }

    @id(0x02000501)
    table delivered_v4 {
        key = {
            meta.low : exact @name("low") @id(1);
            meta.high : exact @name("high") @id(2);
            SESSION_KEY
        }
        actions = { delivered; @defaultonly first_seen; }
        const default_action = first_seen();
        size = DELIVERED_SIZE;
        support_timeout = true;
    }

    @id(0x02000502)
    table delivered_v6 {
        key = {
            meta.low6 : exact @name("low") @id(1);
            meta.high6 : exact @name("high") @id(2);
            SESSION_KEY
        }
        actions = { delivered; @defaultonly first_seen; }
        const default_action = first_seen();
        size = DELIVERED_SIZE;
        support_timeout = true;
    }

    apply {
        if (meta.family == 4) {
            delivered_v4.apply();
        } else {
            delivered_v6.apply();
        }
    }
}
