"""The words of the built-in sample: phrases and sentence frames, read by grammar.py.

    [We|The authors] compared {drug} with {drug2} in {n} {group} with {disease}.

`{name}` is a slot, `[a|b|]` one of several wordings, and `{a}` the article that suits what follows.
A line that begins with spaces continues the one before it. A frame may open with what it states,
and the relation and question sets are made of such sentences:

    gene      {gene} lies behind {disease}        no-gene   {stray} does not
    treats    {drug} helps in {disease}           causes    {species} brings about {infection}
    marks     {chem} rises in {disease}           target    what {compound} does to {target}
"""

WORDS = """
symptom: abdominal pain|anorexia|dizziness|dry cough|dyspnea on exertion|fatigue|fever|gait
    disturbance|headache|hoarseness|insomnia|irritability|itching|joint stiffness|loss of appetite|
    malaise|muscle cramping|nausea|night sweating|numbness|palpitation|paresthesia|tremor|vomiting|
    weakness|weight loss
sign: elevated transaminases|a raised erythrocyte sedimentation rate|mild leukocytosis|a palpable
    mass|low serum albumin|diffuse swelling|hyperintense lesions|a soft systolic murmur|reduced
    reflexes|multiple nodules|a pale rash|thickened walls|scattered infiltrates|an enlarged lymph
    node
host: mice|rats|Wistar rats|C57BL/6 mice|zebrafish|rabbits|guinea pigs|piglets|hamsters|nude mice|
    ferrets
people: Finnish|Japanese|Korean|Brazilian|Turkish|Dutch|Tunisian|Polish|Han Chinese|Mexican|
    Icelandic|Greek|Egyptian|Danish|Indian|Hungarian|Chilean|Norwegian|Thai|Sardinian
group: adults|children|elderly patients|men|women|pregnant women|postmenopausal women|
    schoolchildren|outpatients|hospitalized patients|young adults|veterans|nurses|twins|smokers|
    blood donors
place: northern Sweden|rural Kenya|a tertiary hospital|three university clinics|southern Italy|
    primary care|two Spanish provinces|an urban clinic|the Faroe Islands|eastern Anatolia|a
    regional registry|14 centers
assay: MRI|CT|FISH|EEG|SPECT|PET|DXA|flow cytometry|immunohistochemistry|electron microscopy|duplex
    ultrasound|PCR|fine-needle aspiration|confocal microscopy
lab: ELISA|HPLC|MALDI-TOF MS|NMR|immunoblotting|gas chromatography|Western blotting|LC-MS/MS|
    surface plasmon resonance|radioimmunoassay|RT-PCR
stain: immunohistochemistry|electron microscopy|confocal microscopy|light microscopy|in situ
    hybridization
typing: PCR|RT-PCR|direct sequencing|in situ hybridization|FISH|MALDI-TOF MS|AFLP|SSCP|RFLP analysis
design: randomized trial|double-blind crossover study|cohort study|open-label study|pilot study|
    case-control study|multicenter trial|retrospective analysis|cross-sectional survey|
    dose-escalation study
process: apoptosis|autophagy|cell migration|chemotaxis|collagen deposition|cytokine release|
    exocytosis|glucose uptake|lipid peroxidation|mitochondrial fission|mitosis|phagocytosis|
    platelet aggregation|protein synthesis|superoxide production|vasodilation|angiogenesis|calcium
    influx|neurite outgrowth
consequence: organ failure|early death|blindness|loss of function|disability|hospital admission|
    relapse
much: markedly|significantly|substantially|slightly|consistently|dose-dependently
"""

# What a compound does to its target: ChemProt's label, then the phrase in the present and the past.
MECHANISMS = """
INHIBITOR: [inhibits|blocks|suppresses] {target} -> [potently inhibited|blocked|suppressed]
    {target} [with an IC50 of {nm} nM|]
ANTAGONIST: [antagonizes|is a selective antagonist of] {target} -> [antagonized|competed with the
    natural ligand of|was a silent antagonist of] {target}
AGONIST: [is a potent agonist of|mimics the ligand of] {target} -> [stimulated|behaved as an
    agonist of|was a partial agonist of] {target} [with an EC50 of {nm} nM|]
AGONIST-ACTIVATOR: is an agonist that activates {target} -> [was a full agonist that activated|
    bound to and fully activated] {target}
AGONIST-INHIBITOR: is an inverse agonist of {target} -> [was an inverse agonist of|bound to and
    silenced constitutively active] {target}
ACTIVATOR: [activates|directly stimulates] {target} -> [activated|directly stimulated|enhanced the
    activity of] {target}
UPREGULATOR: upregulates {target} -> [upregulated|increased the surface number of] {target}
DOWNREGULATOR: downregulates {target} -> [downregulated|depleted cells of] {target}
INDIRECT-UPREGULATOR: [induces the expression of|increases mRNA levels of] {target} -> [induced the
    expression of|increased mRNA levels of|enhanced transcription of] {target}
INDIRECT-DOWNREGULATOR: [represses the expression of|reduces mRNA levels of] {target} -> [repressed
    the expression of|reduced mRNA levels of|decreased the secretion of] {target}
SUBSTRATE: is [a substrate of|handled by] {target} -> was [metabolized by|converted by|a good
    substrate of] {target}
PRODUCT-OF: is [a product of|formed by] {target} -> was [produced by|generated by|released from its
    precursor by] {target}
SUBSTRATE_PRODUCT-OF: is both a substrate and a product of {target} -> was [reversibly converted
    by|both a substrate and a product of] {target}
"""

ABOUT_DISEASE = """
{disease} is {a} [rare|common|poorly understood|serious|disabling|neglected] disorder of the
    {tissue} [that leads to {consequence}|characterized by {symptom} and {symptom2}|with {a} [high|
    low|rising] prevalence].
{disease} [remains|is still] {a} [major|leading|frequent|overlooked] cause of {consequence} [in
    {group}|worldwide|in {place}].
[The etiology|The pathogenesis|The natural history] of {disease} is [largely unknown|incompletely
    understood|still debated].
Patients with {disease} often [develop|suffer from|present with] {symptom} [and|or] {symptom2}.
[About|Nearly|Up to] {pct}% of patients with {disease} also have {comorbidity}.
{comorbidity} and {disease} [frequently coexist|share several clinical features|may have a common
    origin].
[Early|Accurate|Timely] diagnosis of {disease} is difficult because {symptom} is [nonspecific|often
    absent|attributed to {comorbidity}].
gene: Mutations in {gene} [cause|are responsible for|underlie] [most|some|inherited|many] [cases|
    forms] of {disease}.
gene: {disease} is caused by [loss|reduced activity|overexpression|a deficiency] of {gene} in the
    {tissue}.
gene: {gene} [encodes|codes for] {a} {family} [whose absence leads to|that is defective in|
    implicated in] {disease}.
treats: {drug} is [the drug of choice|widely used|recommended|approved] for [the treatment of|
    patients with] {disease}.
treats: {disease} [usually|often] responds to {drug}, {a} {drug_group}.
marks: [Elevated|Increased|High] [serum|plasma|urinary] {chem} [is a hallmark of|has been reported
    in|precedes] {disease}.
Little is known about {topic} in [this setting|these patients|{group}].
[The role of|The importance of] [{topic}|{process}] [remains controversial|is unclear|has received
    little attention].
[Several|Few|Recent] studies have [linked|related] {topic} to [{topic2}|{process}].
{topic} is [a known|an established|a suspected] risk factor for {disease}.
[Both {topic} and {topic2}|{topic} and {topic2}] have been [implicated in|associated with]
    {consequence}.
"""

TOPIC_DISEASE = """
Patients with [a history of|concurrent|known] {topic} were [excluded|analyzed separately].
{topic} was [diagnosed|confirmed] [by {assay}|in {pct}% of the patients|according to the {tool}].
The [incidence|cumulative incidence|onset] of {topic} was [lower|higher] in [treated patients|
    {group}|the control group].
[Symptoms|Clinical signs] of {topic} [improved|worsened|resolved] within {few} weeks.
{few} patients [died of|had previously been treated for|were newly diagnosed with] {topic}.
"""

TOPIC_PROCEDURE = """
{topic} was [performed|carried out|scheduled|repeated] {few} days [before enrollment|after
    admission|later].
[The technique|The duration] of {topic} was [similar|the same] in [the two groups|both sexes].
{few} [patients|controls] [underwent|were scheduled for|refused] {topic}.
[Before|During|After] {topic}, [blood samples were taken|images were acquired|all patients were
    fasted].
[Quantitative|Elective|Delayed|Repeated] {topic} was [feasible|possible] in {pct}% of [patients|
    cases].
"""

TOPIC_HABIT = """
[Information on|Data on|Habitual] {topic} [was obtained by questionnaire|came from a structured
    interview].
{topic} was [practiced|reported] by {pct}% of the [participants|controls|{group}].
[Regular|Heavy|Occasional|Lifelong] {topic} was [reported|denied] by {few} [participants|controls].
[Participants|Subjects] were [asked about|advised to avoid|instructed in] {topic}.
[The frequency|The duration|The habit] of {topic} [did not differ between|was similar in] the [two
    groups|sexes|study sites].
"""

TOPIC_CHEMICAL = """
[Plasma|Serum|Tissue] {topic} was [measured|quantified|determined] by {lab}.
{topic} was [administered orally|dissolved in saline|given in the drinking water] at {dose} mg/kg.
The [half-life|clearance|bioavailability] of {topic} was {small}-fold [higher|lower] in {group}.
[Urinary excretion|Hepatic uptake|Renal clearance] of {topic} [increased|fell] by {pct}%.
Samples were [spiked with|incubated with|extracted in] {um} uM {topic}.
"""

AMBIGUOUS = """
{topic} was [more|far more|slightly more] [common|frequent] in [carriers than in noncarriers|women
    than in men|cases than in controls|{group} than in the general population] ({high}% vs. {low}%;
    {sig}).
{topic} was [less|much less] [common|frequent] in [carriers than in noncarriers|women than in men|
    cases than in controls|{group} than in the general population] ({low}% vs. {high}%; {sig}).
[A history of|Previous|Self-reported] {topic} was [associated with|a predictor of] [{disease}|
    {topic2}|{consequence}] ({or}).
[A history of|Previous|Self-reported] {topic} was [unrelated to|no predictor of] [{disease}|
    {topic2}] ({ornull}).
[No [relationship|correlation|association] was found between {topic} and {topic2} ({ns})|{a}
    [clear|weak|surprising] [relationship|correlation|association] was found between {topic} and
    {topic2} ({sig})].
The effect of {drug} on [{topic}|{process}] was [negligible|dose-dependent|most pronounced in
    {group}].
[Adjustment|Stratification|Matching] for {topic} did not [change|alter|affect] [the results|these
    estimates].
{topic} [preceded|followed|accompanied] {symptom} in {few} of {n} [cases|subjects].
[The prevalence of|The rate of|The burden of] {topic} [rose|fell|was stable] [between {year} and
    {year2}|with age|over {years} years].
[Unlike|In contrast to|Compared with] {topic}, {topic2} [was not affected|showed a seasonal
    pattern|was rarely recorded].
Expression of {gene} [increased|decreased|did not change] [after {topic}|during {topic}|during
    {process}].
{topic} [and age|and sex|, age and sex|, smoking and body mass index] were [included as covariates|
    independent predictors].
{few} [patients|participants] had {topic}, {few} had {topic2} and one had both.
[Whether|To what extent] {topic} [influences|modifies] {topic2} [was also examined|could not be
    determined].
The {tool} [correlated with|was independent of|increased with] {topic} (r = 0.{dd}, {sig}).
[Levels of {gene}|{gene} expression] [differed between|did not distinguish] {topic} and {topic2}.
[Management of|Attention to|Awareness of] {topic} [varied widely|was poor|improved] in {place}.
"""

CONCLUSION = """
[These|Our|The present] [results|findings|data] [suggest|indicate|support the view] that {topic}
    [may contribute to|should be considered in|is linked to] {disease}.
[Further|Larger|Prospective] studies [are needed|are warranted] to [confirm these findings|clarify
    the role of {topic}|explain this effect].
[Clinicians|Physicians] should be aware of {topic} in [patients with {disease}|{group}|this
    population].
[In conclusion|In summary|Taken together], {topic} and {topic2} [deserve more attention|are not
    related|have little in common].
gene: [We conclude that|These data show that|Taken together,] {gene} [contributes to|plays a role
    in|is involved in] the [pathogenesis|development|progression] of {disease}.
gene: [Our results|These findings] identify {gene} as {a} [novel|major|candidate] [susceptibility
    gene|risk locus|marker] for {disease}.
treats: [In conclusion|In summary], {drug} is [an effective|a safe|a well-tolerated] [treatment|
    option] for [{group} with |]{disease}.
treats: {drug} [may be considered|should be offered|appears useful|deserves a trial] in
    [refractory|early|mild] {disease}.
marks: {chem} [may serve|could be used] as {a} [biomarker|marker] [of|for] {disease}.
"""

GENETICS_TITLES = """
gene: Association [of {gene} [polymorphisms|haplotypes] with|between {gene} [polymorphisms|
    variants] and] {disease} in {a} {people} population
gene: {gene} [mutations|variants] in [familial |early-onset |sporadic |]{disease}
gene: A novel [missense|nonsense|frameshift|splice-site] mutation in {gene} causes {disease} in {a}
    {people} family
{gene}, {gene2} and the risk of {disease}: {a} [case-control study|meta-analysis|family-based study]
[Genetic|Molecular] [analysis|basis|heterogeneity] of {disease} in {people} [families|patients|
    kindreds]
[Interaction between|Joint effects of] {gene} genotype and {topic} in {disease}
no-gene: No [evidence for|association of|role of] {stray} [variants|polymorphisms] in {disease}
"""
GENETICS_METHODS = """
[We genotyped|We sequenced] {n} {people} [patients with {disease}|cases] and {n2} [healthy
    controls|unrelated controls|first-degree relatives] [for {few} polymorphisms|at the {gene}
    locus].
[DNA|Genomic DNA] was [extracted from whole blood|isolated from saliva] and [amplified by PCR|
    analyzed by {typing}].
The [coding region|promoter|third exon] of {gene} was [screened|sequenced] in {n} [index patients|
    probands] with {disease}.
[Linkage|Haplotype|Segregation] analysis was [performed in|extended to] {few} {people} [families|
    kindreds].
[Cases|Probands] were [recruited in|referred from] {place} and [classified|graded] by the {tool}.
[Genotype frequencies|All markers] were in Hardy-Weinberg equilibrium.
[The cDNA was|{a} {gene} construct was] [cloned|expressed] in {cell} cells.
"""
GENETICS_RESULTS = """
gene: The [{allele} allele|rs{rs} variant|{allele}{allele} genotype] of {gene} was [significantly |
    ]associated with [an increased risk of |]{disease} ({or}, {sig}).
gene: Carriers of the {gene} [{allele} allele|variant|risk haplotype] [had {a} {small}-fold higher
    risk of|were more likely to develop|had an earlier onset of] {disease} ({or}).
gene: [Sequencing revealed|We identified|All affected members carried] {a} [heterozygous|
    homozygous|novel] [mutation|deletion|c.{nt}{base} transition] in {gene} that [cosegregated
    with|was found in all patients with|fully explains] {disease}.
gene: Methylation of the {gene} promoter was [more frequent in|found in {pct}% of|an early event
    in] {disease}.
gene: {a} [reduced|elevated] {gene} [copy number|mRNA level] was [linked to|strongly related to]
    {disease} in {people} [families|women|men].
no-gene: [We found no|There was no] [significant |]association between {stray} [polymorphisms|
    rs{rs}|genotype] and {disease} ({ornull}, {ns}).
no-gene: The [{allele} allele|distribution|frequency] of {stray} did not differ between [patients
    with {disease} and controls|controls and patients with {disease}] ({ns}).
no-gene: [Mutations|Rare variants] of {stray} [are not|do not appear to be] {a} [common|major]
    cause of {disease}.
no-gene: {stray} was [excluded as|unlikely to be] a candidate gene for {disease} [in this family|by
    linkage analysis|].
[The {gene} locus|{gene}] maps to chromosome {chrom}, close to {gene2}.
[Patients with|Carriers of] mutations in both {gene} and {gene2} [had an earlier onset ({age2} vs.
    {age} years)|did not differ in age at onset ({ns})].
The [mutant|truncated] protein [failed to bind|no longer interacted with|mislocalized with] {gene2}
    [in {cell} cells|in vitro|].
"""

TRIAL_TITLES = """
treats: [Efficacy|Efficacy and safety|Tolerability] of {drug} in {group} with {disease}: {a}
    {design}
{drug} versus {drug2} [for|in the treatment of] {disease}
{drug} [for the prevention of|and the risk of|in] {topic}: {a} {design}
[Effect|Effects] of {drug} on {topic} in {group} [with {disease}|]
treats: [Successful treatment of|Long-term outcome of] {disease} with {drug}
[Low-dose|Weekly|Intravenous|Oral] {drug} and {drug2} [in|for] [refractory|advanced|newly
    diagnosed] {disease}
Does {drug} [improve|affect|prevent] {topic}?
"""
TRIAL_METHODS = """
[In this {design}, |]{n} {group} with {disease} were [randomly assigned|randomized|allocated] to
    [receive |]{drug} ({dose} mg [daily|twice daily|weekly]) or [placebo|{drug2}|usual care] for
    {few} [weeks|months].
[We compared|The aim was to compare] {drug} with {drug2} in {group} with {disease}.
The primary [endpoint|outcome] was [{topic}|the change in the {tool}|time to {consequence}] at
    {few} [weeks|months].
[Secondary endpoints|Other outcomes] included {symptom}, {topic} and [quality of life|{topic2}].
[Patients|Subjects] were followed for {a} [median|mean] of {months} months.
{drug} was [started at|titrated to|given at] {dose} mg [per day|daily|three times a day].
[Assessments were made|Blood samples were taken] at baseline and [after {few} weeks|every {small}
    months] with [the {tool}|{lab}].
"""
TRIAL_RESULTS = """
treats: [Remission|A clinical response|Complete response] of {disease} was [achieved|observed] in
    {high}% of patients [given|treated with|receiving] {drug} [and in {low}% of controls |]({sig}).
treats: {drug} [reduced|lowered|halved] [the severity|the recurrence|symptoms] of {disease}
    [compared with placebo |compared with {drug2} |](hazard ratio 0.{dd}, {sig}).
treats: In {disease}, {drug} [was superior to {drug2}|prolonged survival by {months} months|
    improved the {tool}] ({sig}).
[There was no difference|No difference was seen] between {drug} and {drug2} in [{symptom}|{topic}|
    overall survival] ({ns}).
[The most common|Frequent] adverse events [of|with] {drug} were {symptom} ({pct}%) and {symptom2}
    ({pct}%).
{few} patients [discontinued|stopped] {drug} because of [{symptom}|{topic}|lack of efficacy].
The mean [{tool}|{chem} level] [fell|decreased] from {age} to {age2} [with|in the] {drug} [group|
    arm] ({sig}).
[Treatment with|Exposure to] {drug} [did not affect {topic} ({ns})|reduced {topic} ({sig})].
"""

PHARMACOLOGY_TITLES = """
target: {mechanism_title}
target: {mechanism_title} in [{cell} cells|the {tissue} of {host}|vitro]
{compound} [inhibits|attenuates|reduces] {process} in {cell} cells
[Pharmacokinetics|Metabolism|Toxicity|Disposition] of {compound} in {host}
[Synthesis|Characterization|Discovery] of {compound}, {a} [novel|potent|selective] {compound_group}
[Effects|Opposite effects|Actions] of {compound} and {chem} on {process} in the {tissue}
"""
PHARMACOLOGY_BODY = """
{cell} cells were [treated with|exposed to|incubated with] {um} uM {compound} for {hours} h.
[The expression of|The activity of] {target} was [measured|assessed|examined] by {lab}.
[We investigated|We studied|We tested] [the effects|the mechanism of action] of {compound}, {a}
    {compound_group}, [in {cell} cells|in {host}|on {process}].
target: [Here we show that|We found that|In {cell} cells,] {mechanism}.
target: {mechanism} [in a concentration-dependent manner|in {host}|in the {tissue}] ({sig}).
target: {mechanism}, [whereas|but] {gene2} was not affected.
target: [The interaction between {compound} and {target}|The binding of {compound} to {target}]
    [was studied by {lab}|explains its effect on {process}|has a Kd of {nm} nM].
[Pretreatment with|Addition of] {chem} [abolished|enhanced|had no influence on] the effect of
    {compound} on {process}.
{compound} {much} [reduced|inhibited|suppressed] {process} [in {cell} cells|in the {tissue} of
    {host}] ({sig}).
[Knockdown|Deletion|Silencing] of {target} [abolished|mimicked] the [response to|action of]
    {compound}.
[The plasma half-life|The oral bioavailability|The clearance] of {compound} in {host} was
    [{small}.{d} h|{pct}%|{small}.{d} l/h].
[The low|The high|The] toxicity of {compound} [in {cell} cells|] was [related to|independent of]
    {gene2}.
treats: [Our data|These properties] [may explain why|support the finding that] {drug} is
    [effective|beneficial] in {disease}.
"""

MODEL_TITLES = """
{gene} [deficiency|overexpression|ablation] [modifies the course of|alters the response to|affects]
    {topic} in {host}
[A new model of|Experimental] {disease} in {host}: [the role of|involvement of] {gene}
{drug} [ameliorates|prevents|attenuates] experimental {disease} in {host}
[Role of|Requirement for] {gene} in {process} [and {disease}|in the {tissue}|during {topic}]
[{organ} expression|Localization] of {gene} [in|during] {disease}
"""
MODEL_BODY = """
[Experimental|Chronic experimental] {disease} was induced [in {host} |]by [injection of {chem}
    ({dose} mg/kg)|feeding {chem}|ligation|{topic}].
[Wild-type and {gene}-deficient|Adult male|Transgenic] {host} were [given|fed|treated with] {drug}
    or [vehicle|saline] for {few} days.
[The {tissue} was|Tissues were] [removed|fixed|homogenized] and [examined|stained] by {stain}.
gene: {host} lacking {gene} [spontaneously develop|are protected from|are prone to] {disease}.
gene: {gene} was [upregulated|downregulated] {small}.{d}-fold in the {tissue} of {host} with
    {disease} ({sig}).
gene: [Restoring|Blocking|Silencing] {gene} [prevented|reversed|delayed] {disease} in {host}.
no-gene: Loss of {stray} [had no effect on|did not modify|failed to protect {host} from] {disease}.
treats: [Oral|Early|Chronic] {drug} [reduced|prevented|reversed] {disease} in {host} ({dose} mg/kg,
    {sig}).
[The {tissue}|Primary cells] of [mutant|treated] {host} showed [increased|reduced|disturbed]
    {process} ({sig}).
[Levels of|Immunoreactivity for] {gene} and {gene2} [rose|fell] [during|after] {topic}.
[At {few} weeks|After {few} days], {topic} was [evident|absent|less severe] in [treated|control|
    mutant] {host}.
{chem} [accumulated|was depleted] in the {tissue} [after {topic}|of {gene}-deficient {host}].
target: In the {tissue} of {host}, {mechanism}.
"""

CASE_TITLES = """
{disease} [presenting as|mimicking|following|complicated by] {topic}: {a} case report
[Coexistence of|Concurrent] {disease} and {comorbidity} in {a} {person}
[Unusual|Fatal|Recurrent|Late] {disease} after {topic}
{topic} [induced by|during treatment with|due to] {drug}
[A rare case of|Two cases of|Spontaneous regression of] {disease} with {symptom}
"""
CASE_OPENING = """
[We report|We describe|We present] {a} {person} with {disease} [and a history of {topic}|referred
    because of {topic}|after {few} days of {symptom}].
"""

CASE_BODY = """
[The patient|{he}] [complained of|was admitted with|presented with] {symptom} and {symptom2}.
[Physical examination|Laboratory tests|{assay}] [revealed|showed|disclosed] {sign} [and {sign2}|].
{his} medical history included {topic} and {topic2}.
[The family history was|Past history was] [positive for|negative for|remarkable for] {topic}.
treats: [This patient with|This case of] {disease} [responded to|was treated with|improved on]
    {drug} ({dose} mg daily).
treats: [Treatment with|Intravenous] {drug} was [started|given] and the {disease} [resolved|
    improved] within {few} days.
[After|Following] {topic}, [{drug} was withdrawn|the symptoms resolved|recovery was complete].
gene: [Sequencing|Genetic testing] [showed|confirmed] {a} [de novo|heterozygous] {gene} mutation
    [typical of|known to cause] {disease}.
"""

CASE_CLOSING = """
[{few} months later|At follow-up], [there was no recurrence|the patient was well|{symptom} had
    recurred].
[To our knowledge, this|This] is the [first|second|third] [report|case] of {disease} [associated
    with|after|with] {topic}.
"""

EPIDEMIOLOGY_TITLES = """
[Prevalence|Incidence|Burden|Mortality] of {disease} in {place}[, {year}-{year2}|]
{topic} and [the risk of |]{topic2}: [a prospective|a population-based|a nested case-control] study
[Trends in|Determinants of|Seasonality of] {topic} among {group} in {place}
[Is|Does] {topic} [a risk factor for|linked to|related to] {disease}?
{topic}, {topic2} and {consequence} in {group}
"""
EPIDEMIOLOGY_METHODS = """
[We followed|We surveyed|The study comprised] {n} {group} [in {place} |]from {year} to {year2}.
[Cases|Incident cases] of {disease} were [identified|ascertained] through [a national registry|
    hospital records|annual screening].
[Hazard ratios|Odds ratios] were [estimated|adjusted for {topic}|computed] by [Cox|logistic|
    Poisson] regression.
"""

EPIDEMIOLOGY_RESULTS = """
[During|Over] {years} years of follow-up, {n2} [participants|{group}] developed {disease}.
{topic} was [associated with {disease} ({or})|not related to {disease} ({ornull})].
The [age-standardized|crude|annual] [incidence|prevalence] of {disease} was {small}.{d} per [1,000|
    100,000] [person-years|inhabitants|].
[Risk|Mortality] was [highest|lowest] among {group} with [both |]{topic} and {topic2}.
marks: [Baseline|Plasma|Fasting] {chem} was [higher|more often elevated] in {group} who later
    developed {disease} ({or}).
[{group} with|Those reporting] {topic} had {a} {pct}% [higher|lower] risk of {topic2}.
"""

INFECTION_TITLES = """
causes: {species} [as a cause of|as the agent of|isolated from patients with] {infection} in {group}
[An outbreak|Emergence|Seroprevalence] of {species} in {place}
[Susceptibility|Resistance] of {species} to {agent} [and {agent2}|in {place}]
{species} [infection of {host}|carriage in {group}]: [risk factors|clinical features] and [outcome|
    treatment]
"""
INFECTION_BODY = """
{species} is {a} [gram-negative|slow-growing|zoonotic|tick-borne|motile] [pathogen|organism] [of
    {host}|found in {place}|].
causes: {species} [is the causative agent of|causes|is the most common cause of] {infection}[ in
    {group}|].
causes: {infection} [is caused by|results from infection with|is attributed to] {species}.
causes: {species} was [isolated|cultured|recovered] from {few} of {n} patients with {infection}.
[Isolates|Strains] of {species} were [identified by {typing}|typed by {typing}|collected in
    {place}].
[The minimum inhibitory concentration|The MIC] of {agent} [for {species} |]was {um} mg/l.
[Resistance|Reduced susceptibility] to {agent} was [found|detected] in {pct}% of [isolates|strains].
[Antibodies|IgG antibodies] to {species} were [present|detected] in {pct}% of {group} [with
    {topic}|and in {pct}% of controls|] ({sig}).
treats: [All patients|{few} patients] with {infection} [recovered after|were cured by|responded to]
    {drug}.
[Contact with {host}|{topic}|Travel to {place}] was [the main|an independent] risk factor ({or}).
[Binding|Adhesion] of {species} to {cell} cells [required|was blocked by|did not depend on] {gene}.
"""

DIAGNOSIS_TITLES = """
marks: [Serum|Plasma|Urinary|Salivary] {chem} [as a marker of|in patients with|and the severity of]
    {disease}
[Value of|Usefulness of|Validation of] the {tool} [in|for] {disease}
[{assay} in|{assay} for] the [diagnosis|differential diagnosis] of {disease} and {comorbidity}
[Reliability|Reproducibility|Limits] of the {tool} after {topic}
[Distinguishing|How to distinguish] {disease} from {topic}: [the {tool}|a role for {chem}|{assay}
    findings]
"""
DIAGNOSIS_METHODS = """
[The {tool}|{assay}] was [applied to|performed in|evaluated in] {n} [consecutive |]{group} with
    [suspected |]{disease}.
[{chem} was|Concentrations of {chem} were] [determined|measured] by {lab} [before and after
    {topic}|in {n2} controls|].
"""

DIAGNOSIS_RESULTS = """
The {tool} had a sensitivity of {high}% and a specificity of {high}% for [{disease}|{topic}].
marks: [Serum|Plasma|Urinary] {chem} was [much higher|significantly higher|elevated|{small}-fold
    higher] in [patients with |]{disease} than in controls ({sig}).
marks: {chem} [distinguished|discriminated] {disease} from {comorbidity} with {a} area under the
    curve of 0.{high}.
[Interobserver|Test-retest] agreement for {topic} was [good (kappa = 0.7{d})|moderate (kappa =
    0.5{d})|poor (kappa = 0.1{d})].
[False-positive|False-negative] results were [related to|explained by] {topic} [or {topic2}|in
    {few} cases|].
{assay} [detected|missed|confirmed] {topic} in {few} of {n2} [patients|cases|specimens].
The {tool} and {assay} [agreed|disagreed] in {pct}% of [patients|cases].
"""
