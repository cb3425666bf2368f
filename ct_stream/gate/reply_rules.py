"""The rules of `replies` as data: in which order replies are read, and the source of each rule.

The first rule that holds decides. The order matters: rules about this moment or about us come before rules about the
mailbox, because servers put both into one reply ("Mailbox unavailable. Your IP is blacklisted"). Words that name a
mailbox come last; whatever is left after them is inconclusive.

Patterns are matched against folded text: lower case, without accents, one line, "@" for each mail address
(`replies.fold`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ct_stream.gate.reply_kinds import Meaning, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

_BEFORE_RCPT = frozenset({Stage.CONNECT, Stage.BANNER, Stage.HELO, Stage.STARTTLS, Stage.MAIL})
_AT_RCPT = frozenset({Stage.RCPT})
_ANY_STAGE = frozenset(Stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way of reading a reply. Every given condition must hold; with `either`, `enhanced` or `says` is enough."""

    name: str
    meaning: Meaning
    why: str  #: one sentence for people: the reason for this reading
    source: str
    cause: str = ""  #: the word for it in the reason of a failure
    stages: frozenset[Stage] = _ANY_STAGE
    codes: Callable[[int], bool] = lambda code: code >= 400
    enhanced: re.Pattern[str] | None = None  #: full match, "" where the server gave none
    says: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None  #: words with which the rule does not hold
    either: bool = False
    is_session_limit: bool = False
    is_sender: bool = False

    def holds(self, stage: Stage, code: int, enhanced: str, text: str) -> bool:
        """Return whether the rule decides this reply; `text` is folded."""
        if stage not in self.stages or not self.codes(code):
            return False
        by_code = self.enhanced is not None and self.enhanced.fullmatch(enhanced) is not None
        by_words = self.says is not None and self.says.search(text) is not None
        if self.either:
            is_met = by_code or by_words
        else:
            is_met = (self.enhanced is None or by_code) and (self.says is None or by_words)
        return is_met and (self.unless is None or self.unless.search(text) is None)


def _is(*codes: int) -> Callable[[int], bool]:
    return lambda code: code in codes


def _is_4xx(code: int) -> bool:
    return 400 <= code < 500


def _is_5xx(code: int) -> bool:
    return 500 <= code < 600


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_IP = r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{1,4}(?::[0-9a-f]{0,4}){2,7})"
#: Words for the mailbox that is asked about, in the languages that servers speak.
_USER = (
    r"(?:users?|usernames?|mail ?box|mail ?boxes|recipients?|accounts?|addressees?|address(?:es)?|person"
    r"|alias|in ?box"
    r"|e-?mail|local[ -]?part|customer|subscriber|utilisateur|destinataire|adresse|boite|compte|usuario|destinatario"
    r"|direccion|buzon|cuenta|utente|casella|indirizzo|endereco|caixa|conta|empfanger(?:adresse)?|benutzer|postfach"
    r"|gebruiker|ontvanger|uzytkownik|adresat|konto|skrzynk\w*|uzivatel|schranka|anvandare|mottagare\w*"
    r"|bruger\w*|bruker\w*|modtager\w*|mottaker\w*|kayttaja\w*|felhasznalo|cimzett|utilizator|kullanici|alici"
    r"|korisnik|rcpt|mail ?address)"
)
_REFUSED = (
    r"(?:block\w*|refus\w*|reject\w*|denied|deny|ban(?:ned)?|forbid\w*"
    r"|not (?:be )?(?:accept|allow|permit|welcome)\w*)"
)
#: The same in other languages; folded, like all patterns.
_REFUSED_ELSEWHERE = (
    r"(?:gesperrt|blockiert|abgelehnt|zuruckgewiesen|bloque\w*|refuse[es]?\b|rejete\w*|bloquead\w*|rechazad\w*"
    r"|rejeitad\w*|recusad\w*|bloccat\w*|rifiutat\w*|geblokkeerd|geweigerd|zablokowan\w*|odrzucon\w*|blokovan\w*"
    r"|odmitnut\w*|blockerad\w*|blokeret|engellen\w*|заблок\w*|отклонен\w*|запрещен\w*"
    r"|拒绝|拒絕|拒收|屏蔽|封禁|拒否|차단|거부)"
)
_OURS = (
    r"(?:(?:your|sending|connecting) (?:ip(?: address)?|host(?:name)?|server|mail ?server|smtp server|network|provider"
    r"|isp|mta|system|address|connection|location|message source|domain|access|organi[sz]ation)"
    r"|(?:this|remote|client|source|sender) ip(?: address)?)\b"
)
#: The word "IP", but not a URL's parameter ("response_codes?ip=192.0.2.54").
_IP_WORD = (
    r"(?:(?<![?&/=.\w-])ips?(?:v[46])?(?:\b(?![=.])|(?=地址|アドレス|주소))"
    r"|(?:adresse|direccion|indirizzo|endereco|adres) ip\b)"
)
#: Words for the sender, in languages other than English.
_SENDER_ELSEWHERE = (
    r"(?:absender\w*|expediteur\w*|emetteur\w*|remitente\w*|remetente\w*|mittente\w*|afzender\w*|nadawc\w*"
    r"|odesilatel\w*|avsandar\w*|avsender\w*|afsender\w*|gonderen\w*|отправител\w*|відправник\w*"
    r"|发件人|發件人|发信人|送信者|差出人|발신자|보낸)"
)
#: "Does not exist" in scripts other than Latin.
_ABSENT_ELSEWHERE = r"(?:не ?существ|не ?з?наиден|неизвест|несуществ|不存在|存在し(?:ません|ない)|존재하지|찾을 수 없)"
_DOMAIN_ELSEWHERE = r"(?:domini\w*|domaine|domene|doman\b|domen\w*|домен\w*|域名|ドメイン|도메인)"

_NO_SUCH = (
    r"un-?known(?! (?:client|host|sender|domain|command|error|option|mailer|reason|server|source|network))"
    r"|unkown|(?<!domain name )not (?:found|known|exist\w*|valid|listed|recogni[sz]ed|local|here|present|active"
    r"|registered|available here|handled|defined)"
    r"|(?:does|do|did|could|can)(?: ?not|n't|nt| no) (?:\w+ )?(?:exists?|be found"
    r"|have an? (?:\w+ ){0,2}(?:account|mail ?box|address))|dosn't exist|(?:is"
    r"|are)(?: not|n't) (?:a |an )?(?:\w+ )?(?:valid|known|listed|registered|exist\w*|found"
    r"|recogni[sz]ed|local|active|user|here|in use)|non-?exist\w*|no longer|invalid\w*|illegal|unallocated"
    r"|undeliverable(?! address:)|unrout\w*|has (?:left|moved)|not ok\b"
    r"|inconnu\w*|n'existe|inexist\w*|inesist\w*|introuvable|no existe|desconocid\w*|no encontrad\w*"
    r"|sconosciut\w*|non esist\w*|non trovat\w*|non trouvee?\b|nao (?:existe|encontrad\w*)|desconhecid\w*"
    r"|unbekannt\w*|existiert nicht|nicht (?:gefunden|bekannt|vorhanden)|onbekend\w*|bestaat niet"
    r"|nie istnieje|nieznan\w*|bulunama\w*|nicht mehr (?:verfu\w*|vorhanden|gultig|aktiv)|neexistuje|neznam\w*"
    r"|nenalezen\w*|okand\w*|finns inte|hittades inte|ukendt|findes ikke|ukjent|finnes ikke|tuntematon|ismeretlen"
    r"|nem letezik|necunoscut\w*|nu exista|nepoznat\w*|ne postoji"
)

# ---------------------------------------------------------------- at this moment

_GREYLISTED = _words(r"gr[ea]y[ -]?list", r"\bgr[ea]y\.", r"liste? grise")
_LATER = _words(
    r"try (?:again )?later",
    r"(?<!not going to )try again",
    r"come back",
    r"temporar",
    r"later\b",
    r"deferred",
    r"in progress",
    r"\bbusy\b",
)

# ---------------------------------------------------------------- about us

#: Lists of addresses that send spam, by name or by what everybody calls them (RFC 5782 section 1).
_LISTED = _words(
    r"spamhaus|spamcop|barracudacentral|sorbs\.net|uceprotect|abuseat|cbl\b|spamrats|surriel|psbl\b"
    r"|mailspike|invaluement"
    r"|lashback|backscatterer|hostkarma|manitu|dnswl|senderscore|senderbase|talosintel|cloudmark"
    r"|truncate\.gbudb|njabl|abusix|ivm(?:sip|uri)|spamrl\b|dronebl|nixspam|spameatingmonkey|swinog|countries\.nerd"
    r"|(?:ipcheck|dnsbl-lookup|prs)\.?proofpoint|prs\.proofpoint|support\.proofpoint\.com/dnsbl|sender\.office\.com"
    r"|delist@|ipremoval\.sms\.symantec|postmaster\.comcast\.net/smtp-error-codes.php#bl|mail\.live\.com/mail/trouble"
    r"|ers\.trendmicro|email reputation service|\bers-",
    r"\w*dnsbl\w*|\b\w{0,6}rbl\+?\b|block(?:ed)?[ -]?list|black[ -]?list|deny[ -]?list|black ?hole list",
    r"blocked using|blocked - see|(?<!not )\blisted (?:at|in|on|by|as)\b|\bis listed\b|\(bl\)|\[bl\d+\]",
    r"exploits block|policy block list|\b[sx]?bl\d{3,}",
    # AOL's codes: postmaster.aol.com/error-codes.
    r"\b(?:rtr|rly):[a-z]{2}\b|\bcon:b\d\b",
    r"lista (?:negra|nera)|liste noire|schwarze\w* liste|zwarte lijst|czarn\w+ list|cern\w+ listin"
    r"|черн\w+ спис|чорн\w+ спис"
    r"|黑名单|黑名單|ブラックリスト|블랙리스트",
)
#: Words that refuse our address or network explicitly.
_ADDRESS_REFUSED = _words(
    r"banned sending|sending ip|banned sender\b",
    rf"{_OURS}.{{0,80}}?\b(?:{_REFUSED}|listed|reputation|sending history|spam\w*|abus\w+|restricted|blacklist\w*"
    r"|suspicious|filtered|dynamic\w*)",
    rf"{_IP_WORD}.{{0,40}}?(?:\b{_REFUSED}|{_REFUSED_ELSEWHERE})|{_REFUSED_ELSEWHERE}.{{0,40}}?{_IP_WORD}",
    r"\bunknown client\b",
    r"\b(?:invalid|bad|illegal|black|spam|unknown|untrusted|unresolvable) (?:sender |source )?ips?\b",
    r"(?:directory|dictionary) (?:harvest\w*|attack)|harvest(?:ing)? (?:attack|detected)"
    r"|(?:host|client|network) not (?:allowed|permitted|accepted|welcome)"
    r"|\bconnection (?:is |was )?(?:denied|rejected)\b",
    rf"\b{_REFUSED}\b.{{0,50}}?{_OURS}",
    r"client host (?:rejected|blocked|denied)|client (?:ip )?(?:is )?(?:rejected|blocked|denied)"
    r"|\bip (?:address )?(?:is |has been |was )?"
    r"(?:block|black|ban|reject|denied|refus|not allowed|based|frequency|on )|blocked ip|\(ip based\)|adresse ip",
    rf"(?:mail|messages?|e-?mails?|connections?|access|traffic"
    rf"|connect\w*)(?: sent)? (?:originating )?from \W?{_IP}.{{0,60}}?"
    rf"(?:{_REFUSED}|blacklist|weren't|were not|permanently)",
    rf"(?:{_REFUSED}|refusing)(?: \w+){{0,4}} (?:from|for) \W?{_IP}",
    rf"(?<![=/]){_IP}[\])>]*(?::\d+)? ?:? (?:is |has been |was |are )?(?:currently |temporarily |permanently )?"
    rf"(?:block|bann?ed|den(?:ied|y)|reject|refus|blacklist|found on|in an? )",
    r"traffic not accepted from this ip|connections? (?:will )?not (?:be )?accepted from"
    r"|not accept\w* (?:any )?(?:mail|messages?|e-?mails?|connections?)"
    r" from (?:your|this|you|dyn)",
    r"not (?:allowed|authori[sz]ed|permitted|welcome) to connect|you are (?:not welcome|blocked|banned)",
    r"\breputation\b(?!/)|blocked for (?:abuse|spam)|(?:source|origin) of spam|spam (?:source|origin)|known spam"
    r"|spamming|spammer"
    r"|bloque\w* pour|open (?:relay|proxy) (?:server )?(?:detected|list)",
    r"dynamic(?:ally)?(?: assigned)? (?:ip|host|addr|pool|range|client|ranges)|dial-?up|residential"
    r"|smtp server of your isp"
    r"|use your (?:isp|provider)(?:'s)?\b|may not be mail exchanger|administratively denied",
    r"too many spams?\b|complaints|unsolicited mail originating"
    r"|all messages from .{0,60}permanently deferred|a problem occurred\. \(ask your",
    r"permanently blocked|(?<!may be )blacklisted",
)
#: RFC 7372 section 3 (5.7.25), RFC 7372 (SPF, which compares address and sender: 5.7.23, 5.7.24).
_ABOUT_US_CODES = re.compile(r"[45]\.7\.(?:2[345]|50[1236]|509|51[13]|6(?:0[6-9]|[1-4]\d|50)|708|750)")
_REVERSE_NAME = _words(
    r"\bptr\b|reverse[ -]?(?:dns|host\w*|look-?up|name|resol\w*|address|mapping|record|ip)|\brdns\b|fcrdns"
    r"|reverse and forward"
    r"|ip name lookup|forward[ -]confirmed|\bdns reverse|(?:no|missing|invalid) reverse",
    r"(?:cannot|can't|could not|unable to) (?:find|resolve|verify|determine) (?:your|the) (?:reverse "
    r"|client )?(?:host|ip|domain|name)",
    r"(?:your|client|sending|connecting) (?:ip|host|server|domain)\w*.{0,40}(?:not|n't|cannot) resolv"
    r"|possibly forged|hostname mismatch",
    r"without a valid sender domain|no (?:valid )?(?:dns|a|mx) record for (?:your|the (?:sending|client))",
)
_HELO = _words(
    r"\b(?:helo|ehlo)\b.{0,80}?\b(?:reject\w*|invalid|denied|bad|forged|fqdn|fully|mismatch|spoof\w*|fail\w*"
    r"|not (?:exist|resolv|match|accept|found"
    r"|allowed|valid)\w*|is my name|my own|must|host not found|refused|block\w*|has no|no dns)",
    r"\b(?:invalid|bad|reject\w*|forged|fake|illegal|improper|wrong|bogus|malformed)\b.{0,40}?\b(?:helo|ehlo)\b",
    r"need fully-qualified hostname|invalid hostname|access denied, bad helo|\byou are not me\b|\bi am me\b",
)
_HELO_MISSING = _words(
    r"(?:helo|ehlo)(?:/(?:helo|ehlo))?(?: \w+){0,2} first|(?:send|expecting|polite).{0,12}(?:helo|ehlo)"
)
_SENDER = _words(
    r"\bsender(?: address| domain| e-?mail| host| ip| account)?(?: @)?(?: is| was| has been)? (?:reject\w*|denied"
    r"|refused|block\w*|invalid|unknown|not (?:exist|found|verif|valid|accept)\w*"
    r"|not a known|does not|doesn't|must|could not|cannot|verif\w+ fail\w*|un\w+able|listed|banned|address)",
    r"\b(?:invalid|unknown|bad|reject\w*|illegal|unverif\w+|unrout\w+|unresolvable|verify|forged"
    r"|non-?existent|bogus) (?:envelope )?sender\b",
    r"domain of (?:the )?sender|sender(?:'s|s')? domain|sending domain|mail ?from (?:domain|address|command"
    r"|rejected|must|is not|does)"
    r"|from domain (?:does|is|must)|mailfrom domain|domain (?:does|must|do) .{0,20}resolve",
    r"\bspf\b|sender policy framework|return[ -]path|envelope[ -](?:from|sender)|bounce address"
    r"|not allowed to send (?:mail )?from|null sender|empty sender|from:? address\b|from: domain"
    r"|sender (?:callout|callback|verif)|openspf|spf\.pobox",
    r"\bsender\b.{0,60}?\bhas no\b|mail ?from\b.{0,40}?\b(?:fail\w*|mismatch\w*|invalid)|mismatch\w* (?:client )?ip"
    r"|(?:return|reply|originat\w+|source) (?:e-?mail )?address\b|domain .{0,30}(?:is|has been) banned",
    r"\b(?:invalid|bad|wrong|missing) (?:dns|mx)\b",
    rf"\byour (?:e-?mail )?(?:address|domain)\b[^:;.]{{0,20}}?\b(?:{_NO_SUCH})",
    rf"{_SENDER_ELSEWHERE}[^.;:]{{0,40}}?(?:{_NO_SUCH}|{_REFUSED_ELSEWHERE}|{_ABSENT_ELSEWHERE})"
    rf"|(?:{_NO_SUCH}|{_REFUSED_ELSEWHERE}) {_SENDER_ELSEWHERE}",
)
_SENDER_VERIFY = _words(
    r"sender verif\w* fail",
    r"sender (?:callout|callback)",
    r"could not (?:verify|complete) sender",
    # The last line is "Sender verify failed", and may be cut off in a long reply.
    r"^(?:postmaster )?verification failed (?:for|while checking) @|callback setup failed while verifying @",
)
#: A mailbox that refuses mail from everybody, or from senders like us: the mailbox exists.
_RESTRICTED = _words(
    r"allowed[ -]?senders?|permitted[ -]senders?|sender not (?:auth\w+|in|found in)|resolver\.rst"
    r"|not auth\w+ for (?:group|recipient)"
    r"|(?:blocked|rejected|refused|declined|denied|blacklisted) by (?:the )?(?:recipients?|user|addressee"
    r"|destination|their)(?! table| list| map)"
    r"|recipient preferences|user entry|only accepts?|members? only|white ?list"
    # "Recipient rejected" alone is about the recipient, not a choice of the recipient.
    r"|recipient(?:'s)? (?:has (?:blocked|rejected|refused)|blocked|refuses|rejects)"
    r"|(?:does not accept|not accepting) (?:mail|messages|e-?mails?) from|not allowed to receive external"
)
_NEEDS_LOGIN = _words(r"authenticat|\bauth\b|log ?in|pop before|pop3|submission|unauthenticated|smtp auth")

# ---------------------------------------------------------------- our rate, and other limits

_RECEIVER_RATE = _words(
    r"receivingrate|\b(?:user|recipient|mailbox|account|addressee|domain)\b.{0,60}?\b(?:receiving|is getting"
    r"|has exceeded|have exceeded|exceeded their)\b"
    r".{0,60}?\b(?:rate|quickly|fast|too many|limit|number of messages)\b"
)
_OUR_RATE = _words(
    r"too many (?:\w+ ){0,3}?(?:connections?|sessions?|messages|mails|requests|attempts|hosts"
    r"|recipients (?:this|per|from|in|today|for)|users from)",
    r"rate[ -]?limit|(?:connection|message|mail|sending|request|smtp|client|submission|recipient) (?:rate"
    r"|frequency)|rate of (?:mail|messages|connections)"
    r"|throttl\w*|too (?:fast|quickly|frequent\w*|often|much mail)|slow down|frequency limit",
    r"(?:exceed(?:s|ed|ing)?\b|reached|over|above).{0,50}?\b(?:connections?|messages?|rate|hourly|daily|per (?:hour|day"
    r"|minute|connection|ip|session))\b",
    r"sent too (?:many|much)|excessive (?:volume|rate|number|mail)|unexpected volume|unusual (?:rate|volume)"
    r"|number of (?:concurrent )?connections"
    r"|trop de connexions|(?:max\w*|limit)(?: \w+){0,4} (?:connections?|sessions?)|connections? limit"
    r"|server busy.{0,40}from \W?\d|\bdyn:t\d",
)
#: RFC 5321 section 4.5.3.1.10 for recipients; Postfix smtpd_hard_error_limit; Exim's shipped check_rcpt.
_SESSION_LIMIT = _words(
    r"too many (?:\w+ ){0,2}?(?:recipients|errors|bad|invalid|unknown|unrecogni[sz]ed|wrong|failed|rcpt"
    r"|commands|non-?existent|rejected|unsuccessful|undeliverable)",
    r"(?:exceed\w*|max\w*|limit) .{0,24}\b(?:rejected|invalid|unknown|bad|failed) (?:recipients|rcpts?|addresses)",
    r"recipients? (?:per|limit|count)|multiple (?:regions|recipients|destination domains)|\battr\d+"
    r"|one recipient|one at a time|number of recipients"
    r"|recipients belong|max\w* recipients|only .{0,20} recipients?",
)
_STATE_LOST = _words(
    r"need (?:a )?mail|mail (?:from )?(?:command )?(?:first|required|must|before|expected)|bad sequence"
    r"|out of (?:sequence|order)|sequence of|(?:no|specify|give) (?:a )?sender|sender (?:not|first)|no mail\b|polite"
    r"|(?:helo|ehlo|hello) first"
)

# ---------------------------------------------------------------- about the mailbox

_FULL = _words(
    r"\bfull\b|over[ -]?quota|\bquota\b|out of storage|storage (?:allocation|space|limit)"
    r"|size limit exceeded|exceed\w* (?:the )?(?:mailbox|storage|disk)"
    r"|mailbox (?:size )?(?:limit|exceed)|boite .{0,24}pleine|too (?:large|big)|llena|lleno|pien[ao]\b|cheia"
    r"|voll\b|lotado|plein\b|переполн|已满|prepelnion\w*|dolu\b"
)
_RELAY = _words(
    r"\brelay(?!=)\w*|rcpthosts|gateway\w*|not (?:a )?(?:local|hosted|our|known|valid|accepted) domain"
    r"|domain (?:is )?(?:not|isn't|unknown|does not|doesn't|invalid)"
    r"|(?:unknown|no such|invalid|bad) (?:recipient |destination |mail |target )?(?:domain|host)\b"
    r"|(?:recipient|destination) domain|do(?:es)? not (?:handle|accept|host|serve) (?:mail for|that domain"
    r"|this domain)"
    r"|host does not accept|no (?:mail )?service|not (?:a )?mail (?:server|host)|non-local|host unknown"
    r"|unknown host|mx (?:record )?(?:points|for)|transmit(?:ting)? to (?:remote|outside)",
    rf"{_DOMAIN_ELSEWHERE}.{{0,25}}?(?:{_NO_SUCH}|{_ABSENT_ELSEWHERE})",
)
_POLICY = _words(
    r"polic(?:y|ies)|\bspam|prohibit|preferences|envelope|anti-?spoof|dmarc|dkim|virus|content|security"
    r"|\bblock\w*|not (?:allowed|authori[sz]ed|permitted|accepted)"
    r"|restrict\w*|bulk|suspicious|administrative|refused due|rule|filter|challenge|loop|timed? ?out"
    r"|verif(?:y|ication) (?:in|fail)|internal error|system error"
    r"|configuration|syntax|message|permission|firewall|country|sender\b|trust|moderat\w*|not implemented"
    r"|unrecogni[sz]ed command|forger|\babus\w+|\bbanned\b|suspect|spoof|impersonat|(?:server|protocol"
    r"|unknown|upstream) error|service (?:currently )?(?:un|not )available|denied|does(?:n't| not) want"
    r"|refused to receive|user reject\b|\btls\b|protocol|resources|queue|not accepting|verif\w+|hops|sequence"
    r"|transaction failed|expired|too much|\bmust\b",
    _REFUSED_ELSEWHERE,
)
_NO_USER = _words(
    rf"@[ .:,;-]{{0,6}}(?:(?:is|was|the) )?(?:{_NO_SUCH})\b",
    r"\b(?:unknown|no such|invalid)[ :-]+(?:\w+ )?@",
    rf"\b{_USER}\b(?!.{{0,40}}\bdomain\b).{{0,60}}?(?:\b(?:{_NO_SUCH}))",
    rf"\b(?:unknown|no such|invalid|in-?valid|non-?existent|not a (?:valid|known|local)|illegal"
    rf"|unrecogni[sz]ed|undeliverable(?! address:)|bad destination|no valid(?! recipients)|wrong|nonexisting|missing"
    r"|okand|ukendt|ukjent|tuntematon|ismeretlen|unbekannte[rs]?|neznam\w+|nieznan\w+|onbekende?)\b"
    rf"(?: or (?:\w+ ){{1,2}}|[ :-])(?:\S+ ){{0,3}}?{_USER}\b",
    r"\bno (?:mail ?box|account|user|one|such|person|recipient|address|alias|local ?part)\b.{0,40}?\b(?:here"
    r"|by (?:that|this)|at this|with (?:that|this)|found|named|called|exists?|user|mail ?box|person"
    r"|recipient|address|account|alias)\b",
    r"nobody (?:here|by)|not (?:a )?(?:user|member) of (?:this |the )?(?:server|domain|system)",
    r"not our (?:customer|user)|doesn't have an? .{0,30}account"
    r"|does not have an? .{0,30}account|not in (?:the |our |my )?(?:recipient|user|address"
    r"|valid)\w* ?(?:list|table|map|book|directory)?"
    r"|not (?:a |listed in ).{0,30}(?:directory|address book)|no longer (?:on|at|with|in|valid|available"
    r"|exists?|works?|used|accept\w*)|recipnotfound|recipientnotfound|address is not handled"
    r"|user(?:search|unknown)\b|\bnosuchuser\b|isn't a (?:valid|known)|is not a (?:valid|known)"
    r"|this is not a valid|cannot be found|mailbox not found|not exist here|addressee unknown"
    r"|recipient unknown",
    r"utilisateur inconnu|nessun utente|no existe|n'existe pas|keine? (?:solche[rs]? )?(?:benutzer|postfach"
    r"|empfanger|mailbox|user)|nie ma takie\w+|unknown local[ -]?part|unrouteable address|unroutable address",
    _ABSENT_ELSEWHERE,
    r"недоступен|нет такого|无此用户|沒有此|没有此|宛先不明|見つかりません",
    r"nie znaleziono|es gibt keine person|boyle bir kullanici yok",
)
_CLOSED = (
    r"(?:disabled|discontinued|deactivated|inactiv\w*|in-active|not active|suspended|terminated|frozen"
    r"|dormant|expired|abandoned|decommissioned|not (?:yet )?activated"
    r"|desactiv\w*|suspendu\w*|inativ\w*|deaktiviert|gesperrt|zablokowan\w*)"
)
_DISABLED = _words(
    rf"\b{_USER}\b[^.;]{{0,40}}?\b{_CLOSED}",
    rf"\b{_CLOSED}[ -](?:\w+ )?{_USER}\b",
    # About anything else (a message, a sender) these words mean something else.
    r"\b(?:account|mail ?box|compte|cuenta|conta|konto)\b[^.;]{0,40}?\b(?:blocked|locked|closed|cancell?ed"
    r"|deleted|removed|bloque\w*|bloquead\w*)",
    r"\buser (?:has been |was |is )?(?:deleted|removed)\b",
    r"address rejected: (?:inactive|disabled|deactivated|suspended|closed)",
)
_UNAVAILABLE = _words(
    r"mail ?box (?:is )?unavailable|mailbox not available|account (?:is )?unavailable|unavailable mail ?user"
)
_OTHER_THING = r"(?:host(?:name)?s?|servers?|service|client|source|session|certificate|backend|software|network)"
#: Words about us, about a domain or about the server's own trouble say nothing about the mailbox.
_NOT_THE_MAILBOX = _words(
    rf"\bsenders?\b(?![.=])|{_SENDER_ELSEWHERE}|{_IP_WORD}|\b(?:address|host|client|server)(?:es|s)? \W?{_IP}",
    r"\byour (?:ip|(?:e-?mail )?address|host|server|domain|network|provider)\b",
    r"\b(?:dns|mx)\b(?![.-])|resource record|ldap|database|lookup (?:err|fail)|harvest|dictionary attack",
    r"(?:unable to|cannot|could not|can't) connect|connection (?:refused|timed|failed)|credentials",
    # "Host not found", "invalid command": something else is unknown. "No such user on this server" is not such a case.
    rf"\b{_OTHER_THING}\b(?:(?!returned|said)[^.;:,]){{0,25}}?(?:\b(?:{_NO_SUCH})|{_ABSENT_ELSEWHERE})",
    rf"\b(?:unknown|invalid|no such|not a valid|illegal|untrusted) (?:\w+ )?(?:{_OTHER_THING}"
    r"|commands?|parameters?|arguments?|attachments?|messages?|headers?)\b|\blicen[sc]e\b|\brfc ?\d",
    _LATER.pattern,
    _GREYLISTED.pattern,
)
#: A gateway asked the mail server behind it, and says why that refused: it refuses the gateway, not us.
_CALLOUT = _words(
    r"^\W*(?:@\W*)?recipient address rejected: (?:undeliverable|unverified) address"
    r"(?!.*said: 5\d\d[ -]5\.1\.(?:1|10)\b)"
    r"|^callout verification failed"
)
_ADDRESS_REJECTED = _words(
    r"address(?:es)? (?:was |is )?(?:rejected|unknown|invalid)|recipient (?:address )?rejected"
    r"|invalid.?recipient|bad recipient"
)

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------ yes
    Rule(
        name="accepted",
        meaning=Meaning.ACCEPT,
        why="250 and 251 take responsibility for the recipient",
        source="RFC 5321 sections 4.2.3, 3.4",
        stages=_AT_RCPT,
        codes=_is(250, 251),
    ),
    Rule(
        name="cannot-verify",
        meaning=Meaning.INCONCLUSIVE,
        why="252 says that the server cannot verify the mailbox",
        source="RFC 5321 section 3.5.3",
        cause="the server cannot verify mailboxes",
        stages=_AT_RCPT,
        codes=_is(252),
    ),
    Rule(
        name="no-refusal",
        meaning=Meaning.INCONCLUSIVE,
        why="neither a yes at RCPT nor a refusal",
        source="RFC 5321 section 4.2.1",
        cause="no plain answer",
        codes=lambda code: code < 400 or code > 599,
    ),
    # ------------------------------------------------------------ this moment
    Rule(
        name="greylisted",
        meaning=Meaning.INCONCLUSIVE,
        why="greylisting refuses everybody at first, in words of many kinds, even with the name of a list",
        source="RFC 6647 section 2",
        cause="greylisted",
        codes=_is_4xx,
        says=_GREYLISTED,
    ),
    # ------------------------------------------------------------ about us
    Rule(
        name="sender-callout",
        meaning=Meaning.ABOUT_US,
        why="the server checked our own sender at its domain; the unknown user is our sender",
        source="Exim specification, verify = sender; texts of smtp_in.c and verify.c in src/src",
        cause="our sender address is refused",
        says=_SENDER_VERIFY,
        is_sender=True,
    ),
    Rule(
        name="recipient-callout",
        meaning=Meaning.INCONCLUSIVE,
        why="a gateway was refused by the mail server behind it, which says nothing about us",
        source="Postfix reject_unverified_recipient (5.1.1 whatever the reason); Exim verify = recipient/callout",
        cause="the server cannot verify mailboxes",
        stages=_AT_RCPT,
        codes=_is_5xx,
        says=_CALLOUT,
        unless=_words(_NO_USER.pattern, _DISABLED.pattern, _FULL.pattern),
    ),
    Rule(
        name="receiver-rate",
        meaning=Meaning.INCONCLUSIVE,
        why="the mailbox gets too much mail: it exists, and cannot take mail now",
        source="Gmail ReceivingRate, Exchange 5.2.122",
        cause="the mailbox receives too much mail",
        stages=_AT_RCPT,
        says=_RECEIVER_RATE,
    ),
    Rule(
        name="restricted-mailbox",
        meaning=Meaning.INCONCLUSIVE,
        why="a recipient's own choice of senders: the mailbox is there",
        source="Exchange NDR 5.7.124, 5.7.133; Mimecast envelope blocked, user entry",
        cause="policy",
        stages=_AT_RCPT,
        says=_RESTRICTED,
        unless=re.compile(rf"\bip\b|{_IP}|spamhaus"),
    ),
    Rule(
        name="sender-code",
        meaning=Meaning.ABOUT_US,
        why="the enhanced code is about our envelope sender or its domain",
        source="RFC 3463 section 3.2 (x.1.7, x.1.8); RFC 7505 section 4.2 (5.7.27: its domain takes no mail)",
        cause="our sender address is refused",
        enhanced=re.compile(r"[45]\.1\.[78]|[45]\.7\.27"),
        is_sender=True,
    ),
    Rule(
        name="about-us-code",
        meaning=Meaning.ABOUT_US,
        why="the enhanced code is about the sending host or the sender",
        source="RFC 7372; Exchange Online NDR 5.7.501-513, 606-649, 708",
        cause="our address or sender is refused",
        enhanced=_ABOUT_US_CODES,
    ),
    Rule(
        name="reverse-name",
        meaning=Meaning.ABOUT_US,
        why="our address has no reverse DNS name, or a different one",
        source="RFC 7372 section 3.3 (5.7.25); Postfix reject_unknown_client_hostname",
        cause="our reverse DNS is refused",
        says=_REVERSE_NAME,
    ),
    Rule(
        name="helo-refused",
        meaning=Meaning.ABOUT_US,
        why="the name in our HELO is refused",
        source="Postfix smtpd_helo_restrictions; Exim helo_verify",
        cause="our HELO is refused",
        says=_HELO,
        unless=_HELO_MISSING,
    ),
    Rule(
        name="listed",
        meaning=Meaning.ABOUT_US,
        why="our address or our domain is on a blocklist, by name or in other words",
        source="RFC 5782; Postfix reject_rbl_client; pages of Proofpoint, Barracuda, Cisco, Yahoo, Microsoft",
        cause="our address is listed",
        says=_LISTED,
        # SmarterMail says of an account that it "may be blacklisted".
        unless=_words(r"not (?:in|on) .{0,20}(?:recipient|user) list", r"may be blacklisted"),
    ),
    Rule(
        name="sender-refused",
        meaning=Meaning.ABOUT_US,
        why="our envelope sender or its domain is refused",
        source="Postfix reject_unknown_sender_domain; RFC 7208 section 8.4; RFC 7372 section 3.1",
        cause="our sender address is refused",
        says=_SENDER,
        # A sender is also who sends: "sender IP", "sender host" mean our address.
        unless=_NEEDS_LOGIN,
        is_sender=True,
    ),
    Rule(
        name="session-limit",
        meaning=Meaning.INCONCLUSIVE,
        why="the server will not take more questions in this session, whichever they are",
        source="RFC 5321 section 4.5.3.1.10 (452); Postfix smtpd_hard_error_limit; Exim check_rcpt as shipped",
        cause="too many questions in one session",
        stages=_AT_RCPT,
        enhanced=re.compile(r"[45]\.5\.3"),
        says=_SESSION_LIMIT,
        unless=_words(
            rf"from \W?{_IP}|\brate\b|this hour|per hour|today|from your|your ip\b.{{0,40}}\b(?:block|black|ban|den)\w*"
        ),
        either=True,
        is_session_limit=True,
    ),
    Rule(
        name="unusual-rate",
        meaning=Meaning.ABOUT_US,
        why="so much unwanted mail came from our address that it is held back: reputation, not speed",
        source="RFC 3886 registry X.7.28; Gmail 4.7.28; Yahoo TSS04, TS03; Microsoft 4.7.650",
        cause="our address has a poor reputation",
        says=_words(
            r"unsolicited mail|user complaints|due to ip reputation|permanently deferred"
            r"|ip frequency limited|blocked ip|unwanted (?:e-?mails?|messages)|judged to be spam|too much spam"
        ),
    ),
    Rule(
        name="our-rate",
        meaning=Meaning.OUR_RATE,
        why="there are too many connections, ours or all, or we are too fast at this moment",
        source="Postfix anvil; Sendmail ConnectionRateThrottle; Exim smtp_accept_max_per_host; Exchange 4.3.2, 4.7.500",
        cause="we ask too fast",
        says=_OUR_RATE,
        unless=_words(r"quota"),
    ),
    Rule(
        name="address-refused",
        meaning=Meaning.ABOUT_US,
        why="our address, network or host is refused explicitly",
        source="Postfix check_client_access; Exchange Online 5.7.606; Cisco, qmail, Comcast and AT&T refusals",
        cause="our address is refused",
        says=_ADDRESS_REFUSED,
        unless=_words(
            r"user unknown", r"recipient address rejected: (?:undeliverable|unverified)", r"^(?!.*your ip\b).*\brelay"
        ),
    ),
    Rule(
        name="refused-before-rcpt",
        meaning=Meaning.ABOUT_US,
        why="before RCPT the server knows only us, so what it denies is us",
        source="RFC 5321 section 3.1 (554 at the greeting), section 7.9",
        cause="our address or sender is refused",
        stages=_BEFORE_RCPT,
        codes=_is_5xx,
        says=_words(
            r"access (?:is )?(?:denied|rejected|not (?:allowed|permitted))|denied\b|not (?:allowed|permitted"
            r"|authori[sz]ed|welcome)|forbidden"
            r"|connection (?:refused|rejected|denied)|rejected (?:due|for|by|because)|go away"
            r"|\bblock(?:ed|ing)?\b|\bdenies\b|does not exist|must resolve|unresolv\w*|(?:domain|address) is invalid"
        ),
        unless=_words(_NEEDS_LOGIN.pattern, r"\b(?:this|your) (?:message|e-?mail|mail)\b|content|attachment|virus"),
    ),
    # ------------------------------------------------------------ this session, this moment
    Rule(
        name="state-lost",
        meaning=Meaning.INCONCLUSIVE,
        why="the server has forgotten our MAIL FROM, as some do after an error",
        source="RFC 5321 section 4.1.4 (503)",
        cause="the server lost the session's state",
        stages=_AT_RCPT,
        codes=_is(503),
        says=_STATE_LOST,
        is_session_limit=True,
    ),
    Rule(
        name="channel-closing",
        meaning=Meaning.INCONCLUSIVE,
        why="421 closes the session in answer to any command",
        source="RFC 5321 section 3.8",
        cause="temporary refusal",
        codes=_is(421),
        is_session_limit=True,
    ),
    Rule(
        name="full",
        meaning=Meaning.INCONCLUSIVE,
        why="the mailbox is there, and cannot take mail",
        source="RFC 3463 section 3.3 (X.2.2); RFC 5321 (452, 552)",
        cause="mailbox full",
        stages=_AT_RCPT,
        enhanced=re.compile(r"[45]\.2\.2"),
        says=_FULL,
        unless=_words(r"queue quota"),
        either=True,
    ),
    Rule(
        name="temporary",
        meaning=Meaning.INCONCLUSIVE,
        why="a 4xx is never final",
        source="RFC 5321 section 4.2.1",
        cause="temporary refusal",
        codes=_is_4xx,
    ),
    # ------------------------------------------------------------ before RCPT, and relaying
    Rule(
        name="before-rcpt",
        meaning=Meaning.INCONCLUSIVE,
        why="no mailbox has been asked about yet",
        source="RFC 5321 section 4.3.2",
        cause="policy",
        stages=_BEFORE_RCPT,
    ),
    Rule(
        name="no-relay",
        meaning=Meaning.INCONCLUSIVE,
        why="this host does not serve the domain: its MX is wrong, its mailboxes may exist elsewhere",
        source="RFC 3463 section 3.8 (X.7.1); texts of Postfix, Sendmail, Exchange, qmail",
        cause="this host does not take mail for the domain",
        says=_RELAY,
        unless=_words(r"(?<!relay )access denied", r"user unknown|unknown user|no such user"),
    ),
    Rule(
        name="null-mx",
        meaning=Meaning.INCONCLUSIVE,
        why="a relay says this about a domain, not about a mailbox",
        source="RFC 7505 section 4.2, RFC 7504 section 4",
        cause="this host does not take mail for the domain",
        codes=_is(521, 556),
    ),
    Rule(
        name="login-needed",
        meaning=Meaning.INCONCLUSIVE,
        why="the server is for its own users, and wants a login",
        source="RFC 4954 section 6 (530, 5.7.0)",
        cause="policy",
        says=_NEEDS_LOGIN,
        unless=_words(r"user unknown|unknown user|no such user"),
    ),
    # ------------------------------------------------------------ no
    Rule(
        name="no-such-user",
        meaning=Meaning.REJECT,
        why="the words say that this mailbox does not exist here",
        source="RFC 5321 section 4.2.3 (550, 551, 553); texts of Postfix, Exim, Sendmail, qmail and large providers",
        stages=_AT_RCPT,
        codes=_is_5xx,
        says=_NO_USER,
        unless=_words(r"preferences|syntax|unknown (?:\w+ ){0,2}error|smtputf8", _NOT_THE_MAILBOX.pattern),
    ),
    Rule(
        name="disabled",
        meaning=Meaning.REJECT,
        why="the mailbox was closed: mail to it bounces",
        source="RFC 3463 section 3.3 (X.2.1), RFC 4954 (5.7.13); Gmail DisabledUser, Yahoo 554.30",
        stages=_AT_RCPT,
        codes=_is_5xx,
        says=_DISABLED,
        unless=_words(r"polic|\bspam|block-|envelope|your (?:account|mail ?box)|\bdomain\b", _NOT_THE_MAILBOX.pattern),
    ),
    Rule(
        name="edge-blocking",
        meaning=Meaning.REJECT,
        why="Exchange Online's directory does not know the recipient; the words sound like a refusal of us",
        source="Exchange Online, directory-based edge blocking: NDR 5.4.1 and 5.7.504",
        stages=_AT_RCPT,
        codes=_is_5xx,
        enhanced=re.compile(r"5\.4\.1|5\.7\.504"),
        says=_words(r"(?:recipient )?address(?:es)? rejected ?: ?access denied"),
    ),
    Rule(
        name="other-system",
        meaning=Meaning.INCONCLUSIVE,
        why="the enhanced code is about the domain, its routing or the mail system, not about the mailbox",
        source="RFC 3463 section 3.2 (X.1.2), 3.4 (X.3), 3.5 (X.4)",
        cause="this host does not take mail for the domain",
        enhanced=re.compile(r"5\.1\.2|5\.[34]\.\d+"),
    ),
    Rule(
        name="policy",
        meaning=Meaning.INCONCLUSIVE,
        why="a refusal of this message, sender or moment, whatever code it carries",
        source="RFC 3463 section 3.8; Facebook RCP-P2, Trend Micro, Barracuda, Mimecast",
        cause="policy",
        says=_POLICY,
    ),
    Rule(
        name="no-such-user-code",
        meaning=Meaning.REJECT,
        why="the enhanced code says bad, moved or disabled mailbox, and no word contradicts it",
        source="RFC 3463 sections 3.2 and 3.3 (5.1.1, 5.1.6, 5.2.1); RFC 7505 registry (5.1.10)",
        stages=_AT_RCPT,
        codes=_is_5xx,
        enhanced=re.compile(r"5\.1\.(?:1|6|10)|5\.2\.1"),
        unless=_NOT_THE_MAILBOX,
    ),
    Rule(
        name="address-rejected",
        meaning=Meaning.REJECT,
        why='"other address status" with the words that the address is rejected',
        source="RFC 3463 section 3.2 (5.1.0); Cisco IronPort",
        stages=_AT_RCPT,
        codes=_is_5xx,
        enhanced=re.compile(r"5\.1\.0"),
        says=_ADDRESS_REJECTED,
        unless=_NOT_THE_MAILBOX,
    ),
    Rule(
        name="mailbox-unavailable",
        meaning=Meaning.REJECT,
        why="the standard's own words for a mailbox that does not exist, and nothing else",
        source="RFC 5321 section 4.2.3 (550); GMX, IONOS, Outlook.com",
        stages=_AT_RCPT,
        codes=_is(550),
        enhanced=re.compile(r"|5\.5\.0|5\.0\.0|5\.1\.\d|5\.2\.[01]"),
        says=_UNAVAILABLE,
        unless=_NOT_THE_MAILBOX,
    ),
    Rule(
        name="not-plain",
        meaning=Meaning.INCONCLUSIVE,
        why="nothing says that this mailbox does not exist; a wrong reject loses a company for ever",
        source="the gate's law 3",
        cause="policy",
    ),
)
